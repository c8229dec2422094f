"""From the body of a chat completion to the fields of its tasks."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from inference.api.task_serializers import TaskSubmissionSerializer
from monitoring.api.strict_serializer import StrictSerializer

MAX_CHOICES = 8
_MAX_SEED = 2**32 - 2

# What a task calls otherwise, or what has no meaning here.
_OF_TASKS_ALONE = {
    *("prompt", "input_text", "output_schema", "provider_config", "generation_params"),
    *("idempotency_key", "stop_sequences"),
}
# What says nothing about the answer: taken, and not used.
IGNORED = (
    *("user", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`submissions`: the validated fields of a task for each choice, as `first_or_new` takes them.

    `has_usage_chunk`: whether a stream ends with the usage.
    """

    submissions: list[dict[str, Any]]
    is_streamed: bool
    has_usage_chunk: bool


class StreamOptionsSerializer(StrictSerializer):
    """How a stream is written."""

    include_usage = serializers.BooleanField(default=False)
    include_obfuscation = serializers.BooleanField(default=False, help_text="Not used.")


class ChatCompletionRequestSerializer(TaskSubmissionSerializer):
    """OpenAI's fields; beside them those of tasks, such as `top_k`, `grammar` or `priority`."""

    model = serializers.CharField(max_length=100)
    max_completion_tokens = serializers.IntegerField(
        required=False, min_value=1, max_value=128_000, help_text="The newer name of max_tokens."
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
    user = serializers.CharField(required=False, allow_blank=True, help_text="Not used.")
    store = serializers.BooleanField(required=False, help_text="Not used.")
    service_tier = serializers.CharField(required=False, help_text="Not used.")
    safety_identifier = serializers.CharField(required=False, help_text="Not used.")
    prompt_cache_key = serializers.CharField(required=False, help_text="Not used.")
    prompt_cache_retention = serializers.CharField(required=False, help_text="Not used.")

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        fields["messages"].required = True
        return {name: field for name, field in fields.items() if name not in _OF_TASKS_ALONE}

    def to_internal_value(self, data: Any) -> Any:
        """Null means the default, and a single `stop` needs no list."""
        if isinstance(data, dict):
            data = {name: value for name, value in data.items() if value is not None}
            if isinstance(data.get("stop"), str):
                data["stop"] = [data["stop"]]
            if isinstance(data.get("messages"), list):
                data["messages"] = [_message(each) for each in data["messages"]]
        return super().to_internal_value(data)


@cache
def _validator() -> ChatCompletionRequestSerializer:
    """One instance for all requests: validating does not change it, building it is slow."""
    return ChatCompletionRequestSerializer()


def chat_request(body: Any) -> ChatRequest:
    """What a body asks for. Raises ValidationError naming the field."""
    fields: dict[str, Any] = _validator().run_validation(body)
    options = fields.pop("stream_options", {})
    for name in IGNORED:
        fields.pop(name, None)
    for name, ours in (
        ("max_completion_tokens", "max_tokens"),
        ("repetition_penalty", "repeat_penalty"),
    ):
        if name in fields:
            if ours in fields:
                message = f"It is another name of {ours}: give one of them."
                raise ValidationError({name: [message]})
            fields[ours] = fields.pop(name)
    submissions = [dict(fields) for _ in range(fields["n"])]
    if (seed := fields.get("seed")) is not None:
        for index, each in enumerate(submissions):
            each["seed"] = (seed + index) % (_MAX_SEED + 1)
    return ChatRequest(submissions, fields["stream"], options.get("include_usage", False))


def _message(message: Any) -> Any:
    """As tasks take it: members that are null are left out, `developer` is `system`."""
    if not isinstance(message, dict):
        return message
    given = {name: value for name, value in message.items() if value is not None}
    return given | {"role": "system"} if given.get("role") == "developer" else given
