"""What a provider is: one class, with what it can do as attributes and one generator of text."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django.conf import settings

from conversations.models import ChatMessage
from inference.engine.deltas import AnswerDelta
from inference.engine.sequence import FinishReason
from inference.errors import InferenceError
from inference.models import NO_COST, Cost, Provenance, Queue, RegisteredModel, Usage
from inference.structured_output import ResponseFormat
from inference.tools import ToolRequest


@dataclass(frozen=True, slots=True)
class StartOver:
    """In the place of a text: all before it is void, and the answer begins anew."""

    failure: InferenceError


# An answer, as it comes.
Deltas = AsyncGenerator[AnswerDelta | StartOver, None]
# The same of a provider that asks only once.
AnswerDeltas = AsyncGenerator[AnswerDelta, None]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What is asked: `params` are the sampling fields of the API, defaults filled in.

    `request_id` names the attempt: a lost one may still be running when the next one starts.
    A local model reuses what it has computed for the same `owner`, and goes on with the text of an
    `is_raw` one as it is, without its chat template.
    """

    request_id: str
    messages: list[ChatMessage]
    params: dict[str, Any]
    owner: str = ""
    # What the same endpoint, or the memory of a local model, may have read before: the conversation
    # or else what the owner calls all prompts that begin alike. None: the prompt stands for itself.
    conversation_id: str | None = None
    prompt_cache_key: str | None = None
    priority: float = 1.0
    is_raw: bool = False
    response_format: ResponseFormat | None = None
    tools: ToolRequest | None = None
    context_overflow: str = "truncate"
    extra_params: dict[str, Any] = field(default_factory=dict)
    # Whether another model is asked when this one cannot answer.
    has_fallback: bool = False
    # How often the provider was asked again in earlier attempts.
    num_retries: int = 0

    def answer_room(self, window: int) -> int:
        """Tokens of a context window that old turns make room for: max_tokens is only a ceiling."""
        return int(min(self.params["max_tokens"], settings.MIN_OUTPUT_TOKENS, window // 4))


@dataclass(slots=True)
class Progress:
    """How far an answer is; the generating side keeps it, right at every delta."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    finish_reason: FinishReason | None = None
    model_load_ms: float | None = None
    # Who is asked, of the endpoints of a cloud model.
    endpoint: str | None = None
    # Of this attempt.
    cost: Cost = NO_COST
    provenance: Provenance | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    # Of each token so far, where they were asked for; in OpenAI's shape.
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def usage(self) -> Usage:
        usage = Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            cached_tokens=self.cached_tokens,
        )
        if self.reasoning_tokens:
            usage["reasoning_tokens"] = self.reasoning_tokens
        if self.accepted_prediction_tokens or self.rejected_prediction_tokens:
            usage["accepted_prediction_tokens"] = self.accepted_prediction_tokens
            usage["rejected_prediction_tokens"] = self.rejected_prediction_tokens
        return usage


class Provider:
    """A place that answers for one registered model."""

    queue: ClassVar[Queue]
    supports_streaming: ClassVar[bool] = True
    supports_structured_output: ClassVar[bool] = False
    supports_tools: ClassVar[bool] = False
    # The end of a sentence about it; None where it takes images.
    why_no_images: ClassVar[str | None] = "which takes no images: leave them out."
    # Whether it hands the address of an image on, so that nobody here fetches it.
    takes_image_urls: ClassVar[bool] = False
    # Sampling fields that it cannot honour: a task that asks for one is refused.
    unsupported_params: ClassVar[frozenset[str]] = frozenset()
    # What a task's extra_params may have; None: anything, since it goes into the body as it is.
    known_extra_params: ClassVar[frozenset[str] | None] = frozenset()
    # What applies where neither the task nor the model's registration says a value.
    default_params: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: RegisteredModel) -> None:
        self.model = model

    def cost_at_most(self, request: GenerationRequest) -> int | None:
        """What the answer may cost, in billionths of a dollar; None: nobody knows. It may block."""
        return 0

    def generate(self, request: GenerationRequest, progress: Progress) -> Deltas:
        """Yield the answer as it comes; it never blocks the event loop.

        A provider that asks again after it has given text says so by StartOver; one that may be
        asked again only later raises RetryLater.

        Closing or cancelling the generator cancels the call. `progress.finish_reason` is set when
        it ends by itself. Raises InferenceError.

        Only for tasks of the queue `api`: local models are run by a GPU session.
        """
        raise NotImplementedError
