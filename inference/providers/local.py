"""GGUF models on this machine, through the engine."""

import time
from typing import TYPE_CHECKING, Any

from conversations.context import drop_oldest_turns
from conversations.models import ChatMessage
from inference import structured_output
from inference.engine.engine import Engine
from inference.engine.errors import ChatTemplateError, EngineError, PromptTooLongError
from inference.engine.sequence import FinishReason, SamplingParams, Sequence
from inference.errors import ErrorCode, InferenceError
from inference.loading import loaded_models
from inference.models import Queue
from inference.providers.base import GenerationRequest, Progress, Provider, Texts

if TYPE_CHECKING:
    from inference.engine.llama_runner import LlamaRunner


class LocalProvider(Provider):
    """Answers with a model that this worker holds in memory, loaded when first asked for."""

    queue = Queue.GPU
    supports_structured_output = True
    # llama.cpp's own defaults.
    default_params = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05}

    def generate(self, request: GenerationRequest, progress: Progress) -> Texts:
        """The session steps the engine between two chunks."""
        started = time.monotonic()
        resident = loaded_models.load(self.model)
        if resident.loaded_at >= started:
            progress.model_load_ms = (time.monotonic() - started) * 1000
        try:
            sequence = self._add(resident.engine, resident.runner, request, progress)
            yield from self._follow(resident.engine, sequence, progress)
        except PromptTooLongError as error:
            raise InferenceError(str(error), ErrorCode.CONTEXT_LENGTH_EXCEEDED) from error
        except EngineError as error:
            raise InferenceError(str(error), ErrorCode.PROVIDER_ERROR) from error

    def _add(
        self,
        engine: Engine,
        runner: "LlamaRunner",
        request: GenerationRequest,
        progress: Progress,
    ) -> Sequence:
        tokens, num_dropped = _prompt_tokens(runner, request)
        if num_dropped:
            progress.extra["truncated_messages"] = num_dropped
        progress.prompt_tokens = len(tokens)
        return engine.add_request(request.request_id, tokens, _sampling(request))

    def _follow(self, engine: Engine, sequence: Sequence, progress: Progress) -> Texts:
        """Yield what each step has brought: "" too, so that a cancel is seen in a long prompt."""
        try:
            while sequence.finish_reason is None:
                _note(sequence, progress)
                yield sequence.take_text()
        finally:
            engine.abort(sequence.request_id, FinishReason.CANCELLED)
            _note(sequence, progress)
            progress.held_back = sequence.take_text()
        if sequence.finish_reason == FinishReason.ERROR:
            raise EngineError(sequence.error or "The engine gave no reason.")
        progress.finish_reason = sequence.finish_reason


def _prompt_tokens(runner: "LlamaRunner", request: GenerationRequest) -> tuple[list[int], int]:
    """The prompt's tokens, and how many messages were dropped to make it fit."""

    def tokenize(messages: list[ChatMessage]) -> list[int]:
        return runner.tokenize(runner.chat_template.render(messages))

    messages, num_dropped = request.messages, 0
    if request.context_overflow == "truncate":
        # The answer gets the room it may ask for, but never more than half of the window.
        room = min(request.params["max_tokens"], runner.n_ctx_per_seq // 2)
        max_prompt_tokens = runner.n_ctx_per_seq - room
        messages, num_dropped = drop_oldest_turns(
            messages, max_prompt_tokens, lambda kept: _count(tokenize, kept)
        )
    return tokenize(messages), num_dropped


def _count(tokenize: Any, messages: list[ChatMessage]) -> float:
    """Tokens of the messages; infinite when the text cannot fit at all, or cannot be rendered."""
    try:
        return len(tokenize(messages))
    except (PromptTooLongError, ChatTemplateError):
        return float("inf")


def _note(sequence: Sequence, progress: Progress) -> None:
    progress.completion_tokens = len(sequence.output_tokens)
    progress.cached_tokens = sequence.num_cached_tokens


def _sampling(request: GenerationRequest) -> SamplingParams:
    names = SamplingParams.__dataclass_fields__.keys() - {"stop", "grammar"}
    known = {name: value for name, value in request.params.items() if name in names}
    return SamplingParams(
        **known, stop=tuple(request.params["stop_sequences"]), grammar=_grammar(request)
    )


def _grammar(request: GenerationRequest) -> str | None:
    if request.response_format is not None:
        return structured_output.grammar_for(request.response_format)
    grammar: str | None = request.params.get("grammar")
    return grammar
