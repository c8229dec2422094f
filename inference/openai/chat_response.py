"""Chat completions, from tasks that have ended."""

from collections.abc import Sequence
from typing import Any, TypedDict

from inference.engine.sequence import FinishReason
from inference.models import GenerationTask, TaskResult


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionUsage(TypedDict):
    """Tokens of each prompt, once, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AssistantMessage(TypedDict):
    role: str
    content: str | None
    refusal: str | None


class ChatChoice(TypedDict):
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
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: CompletionUsage


def chat_completion(tasks: Sequence[GenerationTask]) -> ChatCompletion:
    """Of tasks that have completed, one for each choice."""
    return ChatCompletion(
        **head(tasks, "chatcmpl", "chat.completion"),
        choices=[_choice(index, result_of(task)) for index, task in enumerate(tasks)],
        usage=usage_of(tasks, num_choices=len(tasks)),
    )


def _choice(index: int, result: TaskResult) -> ChatChoice:
    message = AssistantMessage(role="assistant", content=result["text"], refusal=None)
    reason = finish_reason_of(result)
    return ChatChoice(index=index, message=message, logprobs=None, finish_reason=reason)


class Head(TypedDict):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None


def head(tasks: Sequence[GenerationTask], prefix: str, kind: str) -> Head:
    """What a completion begins with, and each of its chunks; the `id` is that of the first task."""
    return Head(
        id=f"{prefix}-{tasks[0].pk.removeprefix('task_')}",
        object=kind,
        created=int(tasks[0].created_at.timestamp()),
        model=tasks[0].model_name,
        system_fingerprint=None,
    )


def result_of(task: GenerationTask) -> TaskResult:
    """The result of a task that has completed."""
    result: TaskResult | None = task.result
    assert result is not None, "a completed task has a result"
    return result


def finish_reason_of(result: TaskResult) -> str:
    """Why the text ends, in OpenAI's words."""
    return "length" if result["finish_reason"] == FinishReason.LENGTH else "stop"


def usage_of(tasks: Sequence[GenerationTask], num_choices: int) -> CompletionUsage:
    """Of all choices together, of which each prompt has so many."""
    prompts = [task.usage for task in tasks[::num_choices]]
    num_prompt = sum(usage["prompt_tokens"] for usage in prompts)
    num_completed = sum(task.usage["completion_tokens"] for task in tasks)
    return CompletionUsage(
        prompt_tokens=num_prompt,
        completion_tokens=num_completed,
        total_tokens=num_prompt + num_completed,
        prompt_tokens_details={"cached_tokens": sum(usage["cached_tokens"] for usage in prompts)},
    )
