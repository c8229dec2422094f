"""From the body of a response to the fields of its task."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

from django.conf import settings
from rest_framework import serializers
from rest_framework.exceptions import NotFound, ValidationError

from conversations.models import ChatMessage
from conversations.serializers import MAX_CONTENT_CHARS, NewMessageSerializer
from inference.models import GenerationTask, TaskResult
from inference.openai.fields import IGNORED, OF_TASKS_ALONE, CompletionFieldsSerializer
from inference.openai.responses.items import messages_of
from monitoring.api.strict_serializer import StrictSerializer

# Of a response and all before it: each keeps the whole history.
MAX_MESSAGES = 1000
_NAMES = {
    "context_overflow": "truncation",
    "conversation_id": "conversation",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "response_format": "text",
}
# What a response repeats of its request.
_ECHOED = (
    *("background", "store", "instructions", "max_output_tokens", "previous_response_id"),
    *("reasoning", "text", "tools", "tool_choice", "parallel_tool_calls", "truncation"),
    *("service_tier", "user", "safety_identifier", "prompt_cache_key"),
)
_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (
    _LOGPROBS,
    *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
    *("message.input_image.image_url", "computer_call_output.output.image_url"),
    *("code_interpreter_call.outputs", "reasoning.encrypted_content"),
)


class ReasoningSerializer(StrictSerializer):
    """`effort` is for providers that take it; there are no summaries."""

    effort = serializers.CharField(required=False, allow_null=True, max_length=20)
    summary = serializers.CharField(required=False, allow_null=True, help_text="Not used.")
    generate_summary = serializers.CharField(required=False, allow_null=True, help_text="Not used.")


class TextConfigSerializer(StrictSerializer):
    """`verbosity` is for providers that take it."""

    verbosity = serializers.CharField(required=False, allow_null=True, max_length=20)
    format = serializers.DictField(
        required=False,
        help_text=(
            '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "name", '
            '"schema"}; of tasks, "regex", "lark" and "choice" too.'
        ),
    )


class ResponseRequestSerializer(CompletionFieldsSerializer):
    """OpenAI's fields; beside them those of tasks, such as `top_k`, `seed` or `priority`."""

    left_out: ClassVar[Collection[str]] = OF_TASKS_ALONE | {
        *("n", "messages", "max_tokens", "response_format", "context_overflow"),
        *("conversation_id", "save_to_conversation", "logprobs"),
        *("reasoning_effort", "verbosity"),
    }
    dropped: ClassVar[Collection[str]] = IGNORED - {*_ECHOED}

    input = serializers.JSONField(
        help_text="A text, or items: message, function_call, function_call_output, reasoning."
    )
    instructions = serializers.CharField(
        required=False, trim_whitespace=False, allow_blank=True, max_length=MAX_CONTENT_CHARS
    )
    background = serializers.BooleanField(
        default=False, help_text="Answer at once; the response goes on without its client."
    )
    store = serializers.BooleanField(default=True, help_text="False: it cannot be read again.")
    max_output_tokens = serializers.IntegerField(required=False, min_value=1, max_value=128_000)
    text = TextConfigSerializer(required=False)
    tools = serializers.JSONField(
        required=False,
        help_text='[{"type": "function", "name", "description", "parameters", "strict"}]',
    )
    tool_choice = serializers.JSONField(
        required=False, help_text='none, auto, required or {"type": "function", "name"}.'
    )
    parallel_tool_calls = serializers.BooleanField(required=False)
    previous_response_id = serializers.CharField(
        required=False, max_length=64, help_text="Its input and output are the history."
    )
    conversation = serializers.JSONField(
        required=False, help_text='The id of a conversation, or {"id"}; then `input` is a text.'
    )
    reasoning = ReasoningSerializer(required=False)
    truncation = serializers.ChoiceField(
        choices=["auto", "disabled"],
        default="disabled",
        help_text="auto drops the oldest turns of a history that is too long.",
    )
    include = serializers.ListField(
        child=serializers.ChoiceField(choices=_INCLUDED),
        required=False,
        help_text=f"{_LOGPROBS}; the others name what no response here has.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["background"] and not attrs["store"]:
            message = "A background response is read later, so it has to be stored."
            raise ValidationError({"store": [message]})
        if "conversation" in attrs:
            for name in ("previous_response_id", "instructions"):
                if name in attrs:
                    message = "The conversation has its own: leave this, or the conversation, out."
                    raise ValidationError({name: [message]})
        return attrs


@cache
def _validator() -> ResponseRequestSerializer:
    """One instance for all requests, since building one is slow."""
    return ResponseRequestSerializer()


@cache
def _message_validator() -> Any:
    """The same for the messages that the input stands for."""
    return NewMessageSerializer(many=True)


def response_request(body: Any, owner: str) -> dict[str, Any]:
    """The validated fields of a task, as `first_or_new` takes them.

    Its `response` has what the response repeats, and the number of messages before its own input.
    Raises ValidationError naming the field, NotFound for a previous response that is not there.
    """
    fields: dict[str, Any] = _validator().run_validation(body)
    response = {name: fields.pop(name) for name in _ECHOED if name in fields}
    given = fields.pop("input")
    if _LOGPROBS in fields.pop("include", ()) or fields.get("top_logprobs"):
        fields["logprobs"] = True
    fields.pop("stream_options", None)
    fields["save_to_conversation"] = True
    fields["prompt_cache_key"] = response.get("prompt_cache_key")
    is_cut = response["truncation"] == "auto"
    fields["context_overflow"] = "truncate" if is_cut else "error"
    if "max_output_tokens" in response:
        fields["max_tokens"] = response["max_output_tokens"]
    text = response.get("text", {})
    of_providers = {
        "reasoning_effort": response.get("reasoning", {}).get("effort"),
        "verbosity": text.get("verbosity"),
    }
    if asked_of_them := {name: value for name, value in of_providers.items() if value}:
        fields["extra_params"] = (fields.get("extra_params") or {}) | asked_of_them
    if described := text.get("format"):
        fields["response_format"] = _response_format(described)
    fields |= _tool_fields(response)

    messages = messages_of(given)
    try:
        own = _message_validator().run_validation(messages)
    except ValidationError as error:
        raise ValidationError({"input": error.detail}) from error
    if (conversation := fields.pop("conversation", None)) is not None:
        fields["conversation_id"] = _conversation_id(conversation)
        if [message["role"] for message in own] != ["user"] or not isinstance(
            own[0]["content"], str
        ):
            message = "To a conversation, add one text of the user: it has the messages before."
            raise ValidationError({"input": [message]})
        fields["prompt"] = own[0]["content"]
        return fields | {"response": response | {"num_before": 0}}

    before: list[Any] = []
    if instructions := response.get("instructions"):
        before.append({"role": "system", "content": instructions})
    if previous_id := response.get("previous_response_id"):
        before += _history(find(previous_id, owner))
    fields["messages"] = [*before, *own]
    num_bytes = len(json.dumps(fields["messages"]))
    if len(fields["messages"]) > MAX_MESSAGES or num_bytes > settings.MAX_BODY_BYTES:
        message = (
            f"With its history it has more than {MAX_MESSAGES} messages or "
            f"{settings.MAX_BODY_BYTES} bytes: begin anew, with what is still needed of it."
        )
        raise ValidationError({"input": [message]})
    return fields | {"response": response | {"num_before": len(before)}}


def find(response_id: str, owner: str | None) -> GenerationTask:
    """The task of a response, of this owner unless None. Raises NotFound, also if not stored."""
    task = GenerationTask.objects.read(f"task_{response_id.removeprefix('resp_')}")
    is_there = (
        task is not None
        and task.response_id == response_id
        and owner in (None, task.owner)
        and task.request.get("response", {}).get("store")
    )
    if task is None or not is_there:
        message = f"There is no response {response_id[:64]}; ended ones are kept for a time."
        raise NotFound(message)
    return task


@contextmanager
def renamed() -> Iterator[None]:
    """Refusals of a task's fields, by the names that these have in a response."""
    try:
        yield
    except ValidationError as error:
        details: Any = error.detail
        error.detail = {_NAMES.get(name, name): each for name, each in details.items()}
        raise


def _history(previous: GenerationTask) -> list[ChatMessage]:
    """The input and output of an earlier response, without its instructions."""
    if not previous.has_ended:
        message = "It has not ended: wait for its answer first."
        raise ValidationError({"previous_response_id": [message]})
    if previous.conversation_id or not previous.request["messages"]:
        message = f"It is part of a conversation: give conversation {previous.conversation_id}."
        raise ValidationError({"previous_response_id": [message]})
    has_instructions = bool(previous.request["response"].get("instructions"))
    history: list[ChatMessage] = previous.request["messages"][has_instructions:]
    result: TaskResult | None = previous.result
    if result and (result["text"] or result.get("tool_calls")):
        answer = ChatMessage(role="assistant", content=result["text"])
        if calls := result.get("tool_calls"):
            answer["tool_calls"] = calls
        history = [*history, answer]
    return history


def _conversation_id(given: Any) -> str:
    found = given.get("id") if isinstance(given, dict) else given
    if not isinstance(found, str) or len(found) > 64:
        raise ValidationError({"conversation": ['Give its id, or {"id": "conv_…"}.']})
    return found


def _tool_fields(response: dict[str, Any]) -> dict[str, Any]:
    """Tools as a task has them: what describes a function in an object of its own."""
    tools, choice = response.get("tools"), response.get("tool_choice")
    if not tools:
        return {} if choice in (None, "auto", "none") else {"tool_choice": choice}
    asked: dict[str, Any] = {"tools": tools}
    if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
        if others := [str(tool.get("type")) for tool in tools if tool.get("type") != "function"]:
            message = f"Only functions are called: nothing here runs {others[0][:100]}."
            raise ValidationError({"tools": [message]})
        functions = [
            {name: value for name, value in tool.items() if name != "type" and value is not None}
            for tool in tools
        ]
        asked["tools"] = [{"type": "function", "function": each} for each in functions]
    if isinstance(choice, dict) and "name" in choice:
        function = {name: value for name, value in choice.items() if name != "type"}
        choice = {"type": choice.get("type"), "function": function}
    if choice is not None:
        asked["tool_choice"] = choice
    if "parallel_tool_calls" in response:
        asked["parallel_tool_calls"] = response["parallel_tool_calls"]
    return asked


def _response_format(described: dict[str, Any]) -> dict[str, Any]:
    """As a task has it: what describes a schema in an object of its own."""
    if described.get("type") != "json_schema":
        return described
    schema = {
        name: value
        for name, value in described.items()
        if name not in ("type", "description") and value is not None
    }
    return {"type": "json_schema", "json_schema": schema}
