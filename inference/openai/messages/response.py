"""Anthropic's messages, from tasks that have ended."""

import json
from typing import Any, TypedDict

from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode
from inference.models import GenerationTask
from inference.openai.tasks import is_answered

_STOP_REASONS = {FinishReason.LENGTH: "max_tokens", FinishReason.TOOL_CALLS: "tool_use"}


class MessageUsage(TypedDict):
    """`input_tokens` of the prompt had to be computed; the others of it were read from a cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(TypedDict):
    """`content`: blocks of the types thinking, text and tool_use; `model`: which has answered."""

    id: str
    type: str
    role: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


def is_answer(task: GenerationTask) -> bool:
    """Whether an ended task has an answer: a refusal of the provider's filter is one here."""
    return is_answered(task) or task.error_code == ErrorCode.CONTENT_FILTERED


def request_id(task: GenerationTask) -> str:
    return task.pk.replace("task_", "req_")


def message_head(task: GenerationTask) -> AnthropicMessage:
    """A message of which nothing has come yet."""
    return AnthropicMessage(
        id=task.pk.replace("task_", "msg_"),
        type="message",
        role="assistant",
        model=task.model_name,
        content=[],
        stop_reason=None,
        stop_sequence=None,
        usage=usage_of(task),
    )


def message(task: GenerationTask, *, shows_thinking: bool) -> AnthropicMessage:
    """The answer of a task that has ended with one."""
    result: Any = task.result or {"text": ""}
    content: list[dict[str, Any]] = []
    if shows_thinking and (reasoning := result.get("reasoning_content")):
        content.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    if result["text"]:
        content.append({"type": "text", "text": result["text"]})
    for call in result.get("tool_calls") or ():
        block = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"]}
        content.append(block | {"input": _input(call["function"]["arguments"])})
    found = message_head(task)
    found["content"] = content
    found["stop_reason"], found["stop_sequence"] = stop_of(task)
    return found


def stop_of(task: GenerationTask) -> tuple[str, str | None]:
    """Why the answer ends, and the stop sequence where it ends by one."""
    if task.error_code == ErrorCode.CONTENT_FILTERED:
        return "refusal", None
    result: Any = task.result
    sequence = result["extra"].get("stop_sequence")
    reason = _STOP_REASONS.get(result["finish_reason"])
    return reason or ("stop_sequence" if sequence else "end_turn"), sequence


def usage_of(task: GenerationTask) -> MessageUsage:
    """Zeros while the task has no result."""
    usage = task.usage
    return MessageUsage(
        input_tokens=usage["prompt_tokens"] - usage["cached_tokens"],
        cache_creation_input_tokens=0,
        cache_read_input_tokens=usage["cached_tokens"],
        output_tokens=usage["completion_tokens"],
    )


def _input(arguments: str) -> dict[str, Any]:
    """What a tool is called with; under INVALID_JSON what is no JSON object, such as a part."""
    try:
        found = json.loads(arguments) if arguments else {}
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": arguments}
