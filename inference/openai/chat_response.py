"""Chat completions, from tasks that have ended."""

from collections.abc import Sequence
from typing import Any, TypedDict

from inference.engine.sequence import FinishReason
from inference.models import GenerationTask, TaskResult


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionUsage(TypedDict):
    """Tokens of the prompt, once, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AssistantMessage(TypedDict):
    role: str
    content: str | None
    refusal: str | None


class Choice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatCompletion(TypedDict):
    """The choices by index; `model` is the one that answered."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    system_fingerprint: str | None


def chat_completion(tasks: Sequence[GenerationTask]) -> ChatCompletion:
    """Of tasks that have completed, one for each choice."""
    return ChatCompletion(
        id=completion_id(tasks[0]),
        object="chat.completion",
        created=int(tasks[0].created_at.timestamp()),
        model=tasks[0].model_name,
        choices=[_choice(index, result_of(task)) for index, task in enumerate(tasks)],
        usage=usage_of(tasks),
        system_fingerprint=None,
    )


def _choice(index: int, result: TaskResult) -> Choice:
    message = AssistantMessage(role="assistant", content=result["text"], refusal=None)
    reason = finish_reason_of(result)
    return Choice(index=index, message=message, logprobs=None, finish_reason=reason)


def result_of(task: GenerationTask) -> TaskResult:
    """The result of a task that has completed."""
    result: TaskResult | None = task.result
    assert result is not None, "a completed task has a result"
    return result


def completion_id(task: GenerationTask, kind: str = "chatcmpl") -> str:
    """Of the first choice's task."""
    return f"{kind}-{task.pk.removeprefix('task_')}"


def finish_reason_of(result: TaskResult) -> str:
    """Why the text ends, in OpenAI's words."""
    return "length" if result["finish_reason"] == FinishReason.LENGTH else "stop"


def usage_of(tasks: Sequence[GenerationTask]) -> CompletionUsage:
    """Of all choices together; they have one prompt."""
    first = tasks[0].usage
    num_completed = sum(task.usage["completion_tokens"] for task in tasks)
    return CompletionUsage(
        prompt_tokens=first["prompt_tokens"],
        completion_tokens=num_completed,
        total_tokens=first["prompt_tokens"] + num_completed,
        prompt_tokens_details={"cached_tokens": first["cached_tokens"]},
    )
