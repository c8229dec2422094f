"""Chat completions, from tasks that have ended."""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from inference.engine.sequence import FinishReason
from inference.models import GenerationTask, TaskResult


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """Of what was drafted, the tokens that are in an answer, and the others."""

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class CompletionUsage(TypedDict):
    """Tokens of each prompt, once, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AssistantMessage(TypedDict):
    """`content` is null where there are calls alone, which are as messages have them."""

    role: str
    content: str | None
    refusal: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Any]]


class ChoiceLogprobs(TypedDict):
    """One for each token, those of reasoning and calls included."""

    content: list[dict[str, Any]]
    refusal: list[dict[str, Any]] | None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
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


def chat_completion(tasks: Sequence[GenerationTask], num_choices: int) -> ChatCompletion:
    """Of tasks that have completed, one for each of the choices."""
    return ChatCompletion(
        **head(tasks, "chatcmpl", "chat.completion"),
        choices=[_choice(index, result_of(task)) for index, task in enumerate(tasks)],
        usage=usage_of(tasks, num_choices),
    )


def _choice(index: int, result: TaskResult) -> ChatChoice:
    calls, reasoning = result.get("tool_calls"), result.get("reasoning_content")
    content = None if calls and not result["text"] else result["text"]
    message = AssistantMessage(role="assistant", content=content, refusal=None)
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    logprobs = result.get("logprobs")
    return ChatChoice(
        index=index,
        message=message,
        logprobs=choice_logprobs(logprobs["content"]) if logprobs else None,
        finish_reason=finish_reason_of(result),
    )


def choice_logprobs(content: list[dict[str, Any]]) -> ChoiceLogprobs | None:
    """Those of some tokens; None without any."""
    return ChoiceLogprobs(content=content, refusal=None) if content else None


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
    """The result of a task that has one."""
    result: TaskResult | None = task.result
    assert result is not None, "a task that is answered has a result"
    return result


def finish_reason_of(result: TaskResult) -> str:
    """Why the answer ends, in OpenAI's words."""
    reason = result["finish_reason"]
    return reason if reason in (FinishReason.LENGTH, FinishReason.TOOL_CALLS) else "stop"


def usage_of(tasks: Sequence[GenerationTask], num_choices: int) -> CompletionUsage:
    """Of all choices together, of which each prompt has so many."""
    answers = [task.usage for task in tasks]
    prompts = answers[::num_choices]
    num_prompt = sum(usage["prompt_tokens"] for usage in prompts)
    num_completed = sum(usage["completion_tokens"] for usage in answers)
    num_reasoning = sum(usage.get("reasoning_tokens", 0) for usage in answers)
    return CompletionUsage(
        prompt_tokens=num_prompt,
        completion_tokens=num_completed,
        total_tokens=num_prompt + num_completed,
        prompt_tokens_details={"cached_tokens": sum(usage["cached_tokens"] for usage in prompts)},
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=num_reasoning,
            accepted_prediction_tokens=sum(
                task.usage.get("accepted_prediction_tokens", 0) for task in tasks
            ),
            rejected_prediction_tokens=sum(
                task.usage.get("rejected_prediction_tokens", 0) for task in tasks
            ),
        ),
    )
