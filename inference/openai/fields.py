"""The fields that chats and completions have in common, and the submissions that they make."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from inference.api.task_serializers import TaskSubmissionSerializer
from monitoring.api.strict_serializer import StrictSerializer

MAX_CHOICES = 8
_NUM_SEEDS = 2**32 - 1

# What has another name here, or no meaning.
OF_TASKS_ALONE = {
    *("prompt", "input_text", "output_schema", "provider_config", "generation_params"),
    *("idempotency_key", "stop_sequences"),
}
# What says nothing about the answer: taken, and not used.
IGNORED = {
    *("user", "store", "service_tier", "safety_identifier", "prompt_cache_retention"),
}
# What only some cloud models know, by OpenAI's names.
_OF_PROVIDERS = ("reasoning_effort", "verbosity")
_STOP = {"type": "string", "minLength": 1, "maxLength": 1000}
_RENAMED = {"max_completion_tokens": "max_tokens", "repetition_penalty": "repeat_penalty"}


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """`submissions`: the validated fields of a task for each choice, as `first_or_new` takes them.

    Those of one prompt, `num_choices`, follow one another. `has_usage_chunk`: whether a stream ends
    with the usage.
    """

    submissions: list[dict[str, Any]]
    num_choices: int
    is_streamed: bool
    has_usage_chunk: bool


class StreamOptionsSerializer(StrictSerializer):
    """How a stream is written."""

    include_usage = serializers.BooleanField(default=False)
    include_obfuscation = serializers.BooleanField(required=False, help_text="Not used.")


@extend_schema_field({"oneOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": 16}]})
class StopField(serializers.ListField):
    """One, or several."""

    def to_internal_value(self, data: Any) -> list[Any]:
        return super().to_internal_value([data] if isinstance(data, str) else data)


class CompletionFieldsSerializer(TaskSubmissionSerializer):
    """OpenAI's fields; beside them those of tasks, such as `top_k`, `grammar` or `priority`.

    Null means the default, and a single `stop` needs no list.
    """

    null_means_default = True
    left_out: ClassVar[Collection[str]] = OF_TASKS_ALONE
    dropped: ClassVar[Collection[str]] = IGNORED

    model = serializers.CharField(max_length=100)
    stop = StopField(
        child=serializers.CharField(trim_whitespace=False, max_length=1000),
        required=False,
        max_length=16,
    )
    repetition_penalty = serializers.FloatField(
        required=False, min_value=0.01, max_value=100, help_text="Alias of repeat_penalty."
    )
    n = serializers.IntegerField(
        default=1,
        min_value=1,
        max_value=MAX_CHOICES,
        help_text="Choices, each by a task of its own; of a seed, each takes the next one.",
    )
    stream_options = StreamOptionsSerializer(required=False)
    reasoning_effort = serializers.CharField(required=False, help_text="Of cloud models.")
    verbosity = serializers.CharField(required=False, help_text="Of cloud models.")
    user = serializers.CharField(required=False, allow_blank=True, help_text="Not used.")
    store = serializers.BooleanField(required=False, help_text="Not used.")
    service_tier = serializers.CharField(required=False, help_text="Not used.")
    safety_identifier = serializers.CharField(required=False, help_text="Not used.")
    prompt_cache_retention = serializers.CharField(required=False, help_text="Not used.")

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        return {name: field for name, field in fields.items() if name not in self.left_out}

    def to_internal_value(self, data: Any) -> Any:
        """The fields as tasks name them, and `n` and `stream_options`."""
        fields = super().to_internal_value(data)
        for name, ours in _RENAMED.items():
            if name in fields:
                if ours in fields:
                    message = f"It is another name of {ours}: give one of them."
                    raise ValidationError({name: [message]})
                fields[ours] = fields.pop(name)
        for name in _OF_PROVIDERS:
            if name in fields:
                extra_params = fields.get("extra_params", {})
                fields["extra_params"] = {**extra_params, name: fields.pop(name)}
        return {name: value for name, value in fields.items() if name not in self.dropped}


def completion_request(
    fields: dict[str, Any], prompts: Sequence[dict[str, Any]]
) -> CompletionRequest:
    """From validated fields, and those that each prompt adds to them."""
    options = fields.get("stream_options", {})
    shared = {name: value for name, value in fields.items() if name != "stream_options"}
    submissions = [shared | prompt for prompt in prompts for _ in range(fields["n"])]
    if (seed := fields.get("seed")) is not None:
        for index, each in enumerate(submissions):
            each["seed"] = (seed + index % fields["n"]) % _NUM_SEEDS
    has_usage_chunk = options.get("include_usage", False)
    return CompletionRequest(submissions, fields["n"], fields["stream"], has_usage_chunk)
