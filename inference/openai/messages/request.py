"""From the body of Anthropic's Messages to the fields of a task."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from inference.api.task_serializers import TaskSubmissionSerializer
from inference.openai.fields import OF_TASKS_ALONE
from inference.openai.messages.blocks import (
    TEXT,
    BlocksField,
    InputMessageSerializer,
    check_turns,
    turns,
)
from monitoring.api.strict_serializer import StrictSerializer

_LEFT_OUT = OF_TASKS_ALONE - {"stop_sequences"} | {
    *("stop", "response_format", "parallel_tool_calls", "logprobs", "top_logprobs")
}
# What says nothing about the answer: taken, and not used.
_IGNORED = ("cache_control", "service_tier")


class AnthropicToolSerializer(StrictSerializer):
    """A tool of the client; the service has none of its own."""

    null_means_default = True
    type = serializers.ChoiceField(
        choices=["custom"],
        required=False,
        error_messages={
            "invalid_choice": "{input} runs at Anthropic: describe a tool of your own."
        },
    )
    name = serializers.CharField(trim_whitespace=False)
    description = serializers.CharField(required=False, allow_blank=True, trim_whitespace=False)
    input_schema = serializers.DictField()
    strict = serializers.BooleanField(required=False)
    cache_control = serializers.DictField(required=False, help_text="Not used.")
    eager_input_streaming = serializers.BooleanField(required=False, help_text="Not used.")


class AnthropicToolChoiceSerializer(StrictSerializer):
    type = serializers.ChoiceField(choices=["auto", "any", "tool", "none"])
    name = serializers.CharField(required=False)
    disable_parallel_tool_use = serializers.BooleanField(default=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if (attrs["type"] == "tool") != ("name" in attrs):
            raise ValidationError({"name": ["The type tool has it, and no other."]})
        return attrs


class ThinkingSerializer(StrictSerializer):
    """Whether the answer shows what the model has thought; whether it thinks is for the model."""

    type = serializers.ChoiceField(choices=["enabled", "adaptive", "disabled"])
    budget_tokens = serializers.IntegerField(
        required=False, min_value=1, help_text="Not used: max_tokens bounds all of the answer."
    )
    display = serializers.ChoiceField(
        choices=["summarized", "omitted"], required=False, allow_null=True
    )


class OutputFormatSerializer(StrictSerializer):
    type = serializers.ChoiceField(choices=["json_schema"])
    schema = serializers.DictField()


class OutputConfigSerializer(StrictSerializer):
    format = OutputFormatSerializer(required=False, allow_null=True)


class MessagesRequestSerializer(TaskSubmissionSerializer):
    """Anthropic's fields; beside them those of tasks, such as `seed`, `grammar` or `priority`.

    Null means the default.
    """

    null_means_default = True
    model = serializers.CharField(max_length=100)
    max_tokens = serializers.IntegerField(min_value=1, max_value=128_000)
    system = BlocksField(TEXT, required=False)
    messages = InputMessageSerializer(many=True, allow_empty=False)  # type: ignore[assignment]
    tools = AnthropicToolSerializer(many=True, required=False)  # type: ignore[assignment]
    tool_choice = AnthropicToolChoiceSerializer(required=False)  # type: ignore[assignment]
    thinking = ThinkingSerializer(required=False)
    output_config = OutputConfigSerializer(required=False)
    temperature = serializers.FloatField(required=False, min_value=0, max_value=1)
    cache_control = serializers.DictField(required=False, help_text="Not used.")
    service_tier = serializers.ChoiceField(
        choices=["auto", "standard_only"], required=False, help_text="Not used."
    )

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        return {name: field for name, field in fields.items() if name not in _LEFT_OUT}

    def to_internal_value(self, data: Any) -> Any:
        """The fields as tasks name them, and `thinking`."""
        fields = super().to_internal_value(data)
        check_turns(fields["messages"])
        fields["messages"] = list(turns(fields.pop("system", []), fields["messages"]))
        if tools := fields.pop("tools", None):
            fields["tools"] = [_tool(tool) for tool in tools]
        if choice := fields.pop("tool_choice", None):
            fields |= _tool_choice(choice)
        if asked := fields.pop("output_config", {}).get("format"):
            described = {"schema": asked["schema"]}
            fields["response_format"] = {"type": "json_schema", "json_schema": described}
        return {name: value for name, value in fields.items() if name not in _IGNORED}


class TokenCountRequestSerializer(MessagesRequestSerializer):
    """A request for a message, of which the prompt is counted."""

    max_tokens = serializers.IntegerField(
        default=1, min_value=1, max_value=128_000, help_text="Not used."
    )


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """`submission`: the validated fields of its task, as `first_or_new` takes them."""

    submission: dict[str, Any]
    is_streamed: bool
    shows_thinking: bool


@cache
def _validator(kind: type[MessagesRequestSerializer]) -> MessagesRequestSerializer:
    """One instance for all requests: validating does not change it, building it is slow."""
    return kind()


def messages_request(
    body: Any, kind: type[MessagesRequestSerializer] = MessagesRequestSerializer
) -> MessagesRequest:
    """What a body asks for. Raises ValidationError naming the field."""
    fields = _validator(kind).run_validation(body)
    thinking = fields.pop("thinking", {"type": "disabled"})
    shows_thinking = thinking["type"] != "disabled" and thinking.get("display") != "omitted"
    return MessagesRequest(fields, fields["stream"], shows_thinking)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {name: tool[name] for name in ("name", "description", "strict") if name in tool}
    return {"type": "function", "function": function | {"parameters": tool["input_schema"]}}


def _tool_choice(choice: dict[str, Any]) -> dict[str, Any]:
    ours: Any = {"auto": "auto", "any": "required", "none": "none"}.get(choice["type"])
    fields = {"tool_choice": ours or {"type": "function", "function": {"name": choice["name"]}}}
    if choice["disable_parallel_tool_use"]:
        fields["parallel_tool_calls"] = False
    return fields
