"""What has come of an answer so far, and what of it the task keeps beside the text."""

import json
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from inference.engine.answer_parser import AnswerParser
from inference.engine.deltas import AnswerDelta, Reasoning, ToolCallDelta
from inference.engine.sequence import FinishReason
from inference.engine.tool_forms import THINK
from inference.models import Cost, Usage
from inference.providers.base import Progress
from inference.providers.cloud import tokens, wire
from inference.providers.cloud.wire import TooLargeError, ToolCallPart, WholeText

# Text, reasoning, arguments and logprobs together; no model answers so much.
MAX_CHARS = 32 * 2**20
_MAX_REASON_CHARS = 100

_STOP = {
    *("stop", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "completed"),
    *("tool_calls", "tool_call", "tool_use", "function_call", "pause_turn", "finish_reason_stop"),
}
_LENGTH = {
    *("length", "max_tokens", "model_length", "max_output_tokens", "max_completion_tokens"),
    *("context_length", "model_context_window_exceeded", "context_window_exceeded"),
}
_FILTERED = {
    *("content_filter", "content_filtered", "sensitive", "refusal", "safety", "recitation"),
    *("blocklist", "prohibited_content", "spii", "guardrail_intervened", "guardrails"),
}
_FAILED = {
    *("error", "abort", "aborted", "cancelled", "canceled", "timeout", "network_error"),
    *("insufficient_system_resource", "engine_error", "server_error", "malformed_function_call"),
}


@dataclass(slots=True)
class _ToolCall:
    id: str
    index: int | None
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    # How many of the arguments were given out, and how.
    num_told: int = 0
    is_told: bool = False
    told: WholeText = field(default_factory=WholeText)

    @property
    def is_whole(self) -> bool:
        """Whether nothing can come after its arguments."""
        try:
            json.loads("".join(self.arguments))
        except (ValueError, RecursionError):
            return False
        return True


class CloudAnswer:
    """Gathers the events of one call into the progress of the generation, from nothing on."""

    def __init__(
        self, progress: Progress, *, is_in_tool: bool = False, may_think_in_text: bool = False
    ) -> None:
        """`is_in_tool`: the text is what the model calls its only tool with.

        `may_think_in_text`: the text may begin with reasoning in tags, unless the provider tells
        reasoning in a field of its own.
        """
        # When something of the answer came for the last time (monotonic), and what ended it early.
        self.heard_at = time.monotonic()
        self.fault: Exception | None = None
        self._progress = progress
        self._is_in_tool = is_in_tool
        self._text, self._reasoning = WholeText(), WholeText()
        self._parser = AnswerParser(thinking=THINK) if may_think_in_text else None
        self._said: list[str] = []
        self._has_text = False
        self._tool_calls: list[_ToolCall] = []
        self._num_told_calls = 0
        self._num_chars = 0
        self._reason = ""
        self._usage: Usage | None = None
        # The counts of the usage in the provider's own words.
        self.usage_details: dict[str, Any] = {}
        progress.prompt_tokens = progress.completion_tokens = progress.cached_tokens = 0
        progress.reasoning_tokens = 0
        progress.logprobs = []
        for name in ("usage_is_estimated", "warning"):
            progress.extra.pop(name, None)

    @property
    def has_begun(self) -> bool:
        """Whether anything of it was given out."""
        return bool(self._said) or any(call.is_told for call in self._tool_calls)

    @property
    def reason(self) -> str:
        """Why it ends, in the provider's words; "" until it has said so."""
        return self._reason

    @property
    def is_filtered(self) -> bool:
        return self._reason.lower() in _FILTERED

    @property
    def is_failed(self) -> bool:
        """Whether the provider has given up."""
        return self._reason.lower() in _FAILED

    @property
    def has_usage(self) -> bool:
        """Whether the provider has told the tokens."""
        return self._usage is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it has come, not even an end."""
        return not (self._reason or self._num_chars)

    def add(self, event: Any) -> list[AnswerDelta]:
        """What an event adds: nothing unless it is an object, or where it is a `fault`."""
        text = reasoning = ""
        try:
            if isinstance(event, dict):
                text, reasoning = self._read(event)
        except Exception as error:  # noqa: BLE001 (of a shape that nobody expects)
            self.fault = error
        is_last = bool(self._reason) or self.fault is not None
        deltas: list[AnswerDelta] = []
        if thought := self._reasoning.add(reasoning, is_last=is_last):
            deltas += [*self._rest_of_text(), Reasoning(thought)]
        if said := self._text.add(text, is_last=is_last):
            deltas += [said] if self._parser is None else self._parser.feed(said)
        return self._told(deltas) + self._new_of_calls(is_last=is_last)

    def rest(self) -> list[AnswerDelta]:
        """What was held back of an answer that has ended."""
        return self._told(self._rest_of_text()) + self._new_of_calls(is_last=True)

    def _rest_of_text(self) -> list[AnswerDelta]:
        """What may have become a tag; no tags are looked for after that."""
        parser, self._parser = self._parser, None
        return [] if parser is None else parser.finish()

    def _told(self, deltas: list[AnswerDelta]) -> list[AnswerDelta]:
        """The same text and reasoning, which is noted."""
        for delta in deltas:
            if isinstance(delta, Reasoning):
                self._said.append(delta.text)
            elif isinstance(delta, str):
                self._said.append(delta)
                self._has_text = True
        return deltas

    def _read(self, event: dict[str, Any]) -> tuple[str, str]:
        """Text and reasoning of an event of OpenAI's shape, or of a whole completion."""
        choices = event.get("choices")
        choices = choices if isinstance(choices, list) else []
        choice = next((each for each in choices if isinstance(each, dict)), {})
        if fault := wire.error_in(event) or wire.error_in(choice):
            raise fault
        message = choice.get("delta") or choice.get("message") or choice
        message = message if isinstance(message, dict) else {"content": message}
        told = message.get("content")
        text, reasoning = wire.content(message.get("text") if told is None else told)
        text = text or "".join(wire.content(message.get("refusal")))
        for name in ("reasoning_content", "reasoning"):
            reasoning = reasoning or "".join(wire.content(message.get(name)))
        parts = wire.tool_calls(message)
        if self._is_in_tool:
            text += "".join(part.arguments for part in parts)
        else:
            for part in parts:
                self._add_tool_call(part)
        logprobs = choice.get("logprobs")
        logprobs = logprobs.get("content") if isinstance(logprobs, dict) else None
        logprobs = logprobs if isinstance(logprobs, list) else []
        logprobs = [each for each in map(wire.logprob, logprobs) if each is not None]
        self._progress.logprobs += logprobs
        reason = choice.get("finish_reason")
        if not reason and "message" in choice and event.get("object") != "chat.completion.chunk":
            reason = "stop"  # a whole completion needs none
        if reason and reason != "null":
            reason = reason if isinstance(reason, str) else json.dumps(reason)
            self._reason = wire.whole(reason[:_MAX_REASON_CHARS])
        self._usage = wire.usage(event.get("usage")) or self._usage
        self.usage_details = wire.counts(event.get("usage")) or self.usage_details
        if text or reasoning or parts or reason:
            self.heard_at = time.monotonic()
        if text or reasoning or parts:
            self._progress.completion_tokens += 1  # about; the usage comes last
            arguments = sum(len(part.arguments) + len(part.name) for part in parts)
            self._num_chars += len(text) + len(reasoning) + arguments
        if logprobs:
            self._num_chars += len(str(logprobs))
        if self._num_chars > MAX_CHARS:
            raise TooLargeError(f"It is longer than {MAX_CHARS} characters.")
        return text, reasoning

    def _new_of_calls(self, *, is_last: bool) -> list[AnswerDelta]:
        """What there is to tell of the calls, one after the other though they may come mixed."""
        deltas: list[AnswerDelta] = []
        for index in range(self._num_told_calls, len(self._tool_calls)):
            call = self._tool_calls[index]
            is_followed = index + 1 < len(self._tool_calls)
            is_over = is_last or (is_followed and call.is_whole)
            arguments = "".join(call.arguments[call.num_told :])
            call.num_told = len(call.arguments)
            if not call.is_told and (arguments or is_over):  # its name is complete
                call.is_told = True
                call.id = call.id or f"call_{uuid4().hex[:24]}"
                begun = call.told.add(arguments, is_last=is_over)
                deltas.append(ToolCallDelta(index, begun, call.id, call.name))
            elif new := call.told.add(arguments, is_last=is_over):
                deltas.append(ToolCallDelta(index, new))
            if not is_over:
                break
            self._num_told_calls = index + 1
        return deltas

    def _add_tool_call(self, part: ToolCallPart) -> None:
        """Parts belong together by id, then by index, then by order; a new call has a name."""
        calls = self._tool_calls
        of_index = [c for c in calls if part.index is not None and c.index == part.index]
        call = next((c for c in calls if part.id and c.id == part.id), None)
        if call is None:
            before = of_index[-1:] if part.index is not None else calls[-1:]
            is_new = not before or bool(
                part.name
                and (
                    (part.id and before[0].id)
                    or (part.index is None and not part.id)
                    or before[0].is_whole
                )
            )
            if is_new:
                call = _ToolCall(part.id, part.index)
                calls.append(call)
            else:
                call = before[0]
        call.id = call.id or part.id
        if part.name != call.name and not any(call.arguments):
            call.name += part.name
        call.arguments.append(part.arguments)

    def note(self) -> None:
        """Say in the progress what there is, also when it is not all."""
        extra = self._progress.extra
        if self._reason:
            reason = self._reason.lower()
            is_cut = reason in _LENGTH
            self._progress.finish_reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
            if reason not in _STOP | _LENGTH | _FILTERED | _FAILED:
                extra["provider_finish_reason"] = self._reason
            if self._said and not self._has_text and not self._tool_calls:
                extra["warning"] = (
                    "The model has reasoned and said nothing: raise max_tokens, or have it reason "
                    "less."
                )
        if self._usage is not None:
            self._progress.prompt_tokens = self._usage["prompt_tokens"]
            self._progress.cached_tokens = self._usage["cached_tokens"]
            if self._reason:  # before that, it is what was known at the beginning
                self._progress.completion_tokens = self._usage["completion_tokens"]
                self._progress.reasoning_tokens = self._usage["reasoning_tokens"]

    def estimate_usage(self, prompt_tokens: int) -> None:
        """Count what the provider does not tell, with a tokenizer that is not its own."""
        self._progress.prompt_tokens = prompt_tokens
        called = [part for call in self._tool_calls for part in (call.name, *call.arguments)]
        self._progress.completion_tokens = tokens.count("".join([*self._said, *called]))
        self._progress.extra["usage_is_estimated"] = True

    def add_cost(self, nano_usd: int | None) -> None:
        """Add what the call has cost to what those before it have; None where nobody knows."""
        self._progress.cost += Cost(cost_nano_usd=nano_usd)

    @property
    def usage(self) -> Usage:
        """Tokens, as far as they are known."""
        return self._progress.usage()
