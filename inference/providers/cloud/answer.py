"""What has come of an answer so far, and what of it the task keeps beside the text."""

from typing import Any

from inference.engine.sequence import FinishReason
from inference.providers.base import Progress
from inference.providers.cloud import tokens
from inference.providers.cloud.stream import Delta

# A reason of LiteLLM's for an answer that the provider's filter has cut.
_FILTERED = "content_filter"


class CloudAnswer:
    """Gathers the pieces of one call into the progress of the generation, from nothing on."""

    def __init__(self, progress: Progress, *, is_in_tool: bool) -> None:
        """`is_in_tool`: the text is what the model calls its only tool with."""
        self._progress = progress
        self._is_in_tool = is_in_tool
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Any] = []
        self._finish_reason: str | None = None
        self._usage: Any = None
        progress.prompt_tokens = progress.completion_tokens = progress.cached_tokens = 0
        for name in ("reasoning", "tool_calls", "logprobs", "usage_is_estimated"):
            progress.extra.pop(name, None)

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def is_complete(self) -> bool:
        """Whether the provider has said why the answer ends."""
        return self._finish_reason is not None

    @property
    def is_filtered(self) -> bool:
        return self._finish_reason == _FILTERED

    @property
    def has_usage(self) -> bool:
        """Whether the provider has told the tokens."""
        return self._usage is not None

    def add(self, deltas: list[Delta]) -> str:
        """The text that they add."""
        text = "".join(map(self._add, deltas))
        if text:
            self._text.append(text)
        return text

    def _add(self, delta: Delta) -> str:
        self._finish_reason = delta.finish_reason or self._finish_reason
        self._logprobs.extend(delta.logprobs)
        if delta.reasoning:
            self._reasoning.append(delta.reasoning)
        if delta.usage is not None:
            self._usage = delta.usage
        if delta.text or delta.reasoning or delta.tool_calls:
            self._progress.completion_tokens += 1  # about; the usage comes last
        if self._is_in_tool:
            return delta.text + "".join(call.function.arguments or "" for call in delta.tool_calls)
        for call in delta.tool_calls:
            self._add_tool_call(call)
        return delta.text

    def _add_tool_call(self, piece: Any) -> None:
        """Its name comes first, its arguments piece by piece."""
        call = self._tool_calls.setdefault(
            piece.index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = piece.id or call["id"]
        if piece.function is not None:
            call["function"]["name"] += piece.function.name or ""
            call["function"]["arguments"] += piece.function.arguments or ""

    def note(self) -> None:
        """Say in the progress what there is, also when it is not all."""
        extra = self._progress.extra
        if self._reasoning:
            extra["reasoning"] = self.reasoning
        if self._tool_calls:
            extra["tool_calls"] = [call for _, call in sorted(self._tool_calls.items())]
        if self._logprobs:
            extra["logprobs"] = [logprob.model_dump() for logprob in self._logprobs]
        if self._finish_reason is not None:
            is_cut = self._finish_reason == FinishReason.LENGTH
            self._progress.finish_reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
        if self._usage is not None:
            self._note_usage()

    def estimate_usage(self, prompt_tokens: int) -> None:
        """Count what the provider does not tell, with a tokenizer that is not its own."""
        self._progress.prompt_tokens = prompt_tokens
        self._progress.completion_tokens = tokens.count(self.reasoning + self.text)
        self._progress.extra["usage_is_estimated"] = True

    def _note_usage(self) -> None:
        details = getattr(self._usage, "prompt_tokens_details", None)
        self._progress.prompt_tokens = self._usage.prompt_tokens or 0
        if self.is_complete:  # before that, it is what was known at the beginning
            self._progress.completion_tokens = self._usage.completion_tokens or 0
        self._progress.cached_tokens = getattr(details, "cached_tokens", None) or 0
