"""The response object, from its task."""

from typing import Any, TypedDict

from inference.errors import ErrorCode
from inference.models import GenerationTask, TaskResult
from inference.openai.responses.items import (
    call_item,
    items_of,
    message_item,
    reasoning_item,
    reasoning_part,
    text_part,
)
from inference.task_body import was_cut

_TaskStatus = GenerationTask.Status
_STATUSES = {
    _TaskStatus.PENDING: "queued",
    _TaskStatus.PROCESSING: "in_progress",
    _TaskStatus.COMPLETED: "completed",
    _TaskStatus.FAILED: "failed",
    _TaskStatus.CANCELLED: "cancelled",
}
# Others are server_error; the SDK knows few codes.
_ERROR_CODES = {
    ErrorCode.CONTENT_FILTERED: "invalid_prompt",
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: "invalid_prompt",
    ErrorCode.INVALID_REQUEST: "invalid_prompt",
    ErrorCode.RATE_LIMITED: "rate_limit_exceeded",
}


class InputTokensDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(TypedDict):
    code: str
    message: str


class IncompleteDetails(TypedDict):
    """`reason` is max_output_tokens."""

    reason: str


class ConversationReference(TypedDict):
    id: str


class ResponseObject(TypedDict):
    """`model` is the one that answered; `usage` is null until there is an answer."""

    id: str
    object: str
    created_at: int
    completed_at: int | None
    status: str
    background: bool
    store: bool
    model: str
    output: list[dict[str, Any]]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    instructions: str | None
    previous_response_id: str | None
    conversation: ConversationReference | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    text: dict[str, Any]
    reasoning: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: Any
    parallel_tool_calls: bool
    truncation: str
    metadata: dict[str, Any]
    service_tier: str
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None


class ResponseItemList(TypedDict):
    object: str
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


def key_of(task: GenerationTask) -> str:
    """What the ids of a response and of its items have in common."""
    return task.pk.removeprefix("task_")


def status_of(task: GenerationTask) -> str:
    """In OpenAI's words; incomplete where the answer was cut."""
    return "incomplete" if was_cut(task) else _STATUSES[_TaskStatus(task.status)]


def response_object(task: GenerationTask) -> ResponseObject:
    """The response as it is now."""
    asked, status = task.request["response"], status_of(task)
    params = task.request["params"]
    ended_at = task.finished_at if status == "completed" else None
    failure = None
    if status == "failed":
        code = _ERROR_CODES.get(ErrorCode(str(task.error_code)), "server_error")
        failure = ResponseError(code=code, message=task.error or "")
    return ResponseObject(
        id=task.response_id,
        object="response",
        created_at=int(task.created_at.timestamp()),
        completed_at=int(ended_at.timestamp()) if ended_at else None,
        status=status,
        background=asked["background"],
        store=asked["store"],
        model=task.model_name,
        output=output_items(task),
        error=failure,
        incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
        usage=_usage(task),
        instructions=asked.get("instructions"),
        previous_response_id=asked.get("previous_response_id"),
        conversation={"id": task.conversation_id} if task.conversation_id else None,
        max_output_tokens=asked.get("max_output_tokens"),
        temperature=params.get("temperature"),
        top_p=params.get("top_p"),
        text={"format": {"type": "text"}} | asked.get("text", {}),
        reasoning={"effort": None, "summary": None} | asked.get("reasoning", {}),
        tools=asked.get("tools") or [],
        tool_choice=asked.get("tool_choice", "auto"),
        parallel_tool_calls=asked.get("parallel_tool_calls", True),
        truncation=asked["truncation"],
        metadata=task.metadata,
        service_tier=asked.get("service_tier", "default"),
        user=asked.get("user"),
        safety_identifier=asked.get("safety_identifier"),
        prompt_cache_key=asked.get("prompt_cache_key"),
    )


def output_items(task: GenerationTask) -> list[dict[str, Any]]:
    """Reasoning, text and calls; a message without text where the model said nothing at all."""
    result: TaskResult | None = task.result
    if result is None:
        return []
    is_whole = status_of(task) == "completed"
    key, status = key_of(task), "completed" if is_whole else "incomplete"
    items = []
    if reasoning := result.get("reasoning_content"):
        items.append(reasoning_item(key, reasoning_part(reasoning), status=status))
    calls = result.get("tool_calls") or []
    if result["text"] or (is_whole and not calls):
        logprobs = (result.get("logprobs") or {}).get("content", ())
        items.append(message_item(key, text_part(result["text"], logprobs), status=status))
    return items + [call_item(f"{key}_{n}", call, status) for n, call in enumerate(calls)]


def input_items(task: GenerationTask) -> list[dict[str, Any]]:
    """What was asked, in the order given, without the responses before it."""
    request = task.request
    messages = request["messages"] or [{"role": "user", "content": request["prompt"]}]
    return list(items_of(messages[request["response"]["num_before"] :], f"{key_of(task)}_in"))


def _usage(task: GenerationTask) -> ResponseUsage | None:
    if task.result is None:
        return None
    usage = task.usage
    return ResponseUsage(
        input_tokens=usage["prompt_tokens"],
        input_tokens_details={"cached_tokens": usage["cached_tokens"], "cache_write_tokens": 0},
        output_tokens=usage["completion_tokens"],
        output_tokens_details={"reasoning_tokens": usage.get("reasoning_tokens", 0)},
        total_tokens=usage["total_tokens"],
    )
