"""Tells reasoning, text and tool calls apart in the text that a model writes, while it comes."""

import re
from collections.abc import Callable, Collection
from enum import Enum, auto
from uuid import uuid4

from inference.engine.call_reader import CallReader
from inference.engine.deltas import AnswerDelta, Reasoning, ToolCallDelta
from inference.engine.tool_forms import ThinkingTags, ToolForm

# What may stand between the calls of one answer.
_SEPARATORS = re.compile(r"(?:[\s,;\]]|\[(?![A-Z]|\Z))*")
_NAMED = re.compile(
    r"([A-Za-z0-9_-]{1,64})(?:\[CALL_ID\][A-Za-z0-9_-]{0,64})?(?:\[ARGS\])?\s*(?=\{)"
)
_NAMED_SO_FAR = re.compile(
    r"[A-Za-z0-9_-]{1,64}(?:\[[A-Z_]{0,7}(?:\][A-Za-z0-9_-]{0,64})?){0,2}\s*"
)


class _State(Enum):
    BEGINNING = auto()  # nothing but white space was written, or said after the reasoning
    THINKING = auto()
    TEXT = auto()
    BETWEEN_CALLS = auto()  # after a mark, or a call
    CALL = auto()


def new_call_id() -> str:
    return f"call_{uuid4().hex[:24]}"


class AnswerParser:
    """Fed with the text of one answer; what it gives out does not depend on how that was split.

    What only looks like the beginning of a call, or calls no tool that was offered, is text. White
    space around reasoning and calls is left out; text after a call begins a new line.
    """

    def __init__(
        self,
        *,
        form: ToolForm | None = None,
        tools: Collection[str] = (),
        thinking: ThinkingTags | None = None,
        is_thinking: bool = False,
        is_parallel: bool = True,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`form` of the calls, None where none is expected; `tools`: the names of the tools.

        `is_thinking`: the prompt has opened the reasoning. Of calls that are not to be
        `is_parallel`, only the first is given out.
        """
        self._form = form
        self._tools = tools
        self._thinking = thinking
        self._is_parallel = is_parallel
        self._new_id = new_id
        self._state = _State.THINKING if is_thinking else _State.BEGINNING
        self._held = ""
        # White space is left out where the next text begins.
        self._is_skipping = is_thinking
        self._has_text = False
        self._num_calls = 0
        self._has_called = False
        # What was written since the mark of a call that has not begun yet.
        self._raw = ""
        self._call: CallReader | None = None
        self._num_told, self._is_call_told = 0, False
        self._deltas: list[AnswerDelta] = []

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is reasoning, as far as that is certain."""
        return self._state == _State.THINKING

    def feed(self, text: str) -> list[AnswerDelta]:
        """What is certain with more of the text."""
        if text:
            self._held += text
            steps = {
                _State.BEGINNING: self._begin,
                _State.THINKING: self._think,
                _State.TEXT: self._write,
                _State.BETWEEN_CALLS: self._look_for_call,
                _State.CALL: self._read_call,
            }
            while steps[self._state]():
                pass
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self) -> list[AnswerDelta]:
        """What was held back: no more will come."""
        if self._call is not None and not self._call.has_begun:
            self._give_up_call()
        if self._state == _State.BETWEEN_CALLS:
            self._leave_calls(_SEPARATORS.sub("", self._held, count=1))
        held, self._held = self._held, ""
        if self._state == _State.THINKING:
            self._think_aloud(held.rstrip())
        elif not (self._num_calls or self._is_skipping) or held.strip():
            self._say(held)
        deltas, self._deltas = self._deltas, []
        return deltas

    def _begin(self) -> bool:
        """Reasoning and bare calls can only stand at the beginning."""
        start = self._held.lstrip()
        tags, is_bare = self._thinking, self._form is not None and self._form.is_bare
        if tags is not None and start.startswith(tags.open):
            self._held = start[len(tags.open) :]
            self._state, self._is_skipping = _State.THINKING, True
        elif (tags is not None and tags.open.startswith(start)) or (is_bare and not start):
            return False
        elif is_bare and start[0] == "{":
            self._raw = self._held[: len(self._held) - len(start)]
            self._held = start
            self._has_called = False
            self._begin_call()
        else:
            self._state = _State.TEXT
        return True

    def _think(self) -> bool:
        tags = self._thinking
        assert tags is not None
        thought, mark = self._up_to(tags.close)
        self._think_aloud(thought)
        if mark:
            # Only once: a tag in the text is text.
            self._thinking = None
            self._state, self._is_skipping = _State.BEGINNING, True
            self._held = self._held.lstrip()
        return bool(mark)

    def _write(self) -> bool:
        if self._form is None:
            held, self._held = self._held, ""
            self._say(held)
            return False
        said, mark = self._up_to(self._form.open)
        self._say(said)
        if mark:
            self._raw, self._has_called = mark, False
            self._state = _State.BETWEEN_CALLS
        return bool(mark)

    def _look_for_call(self) -> bool:
        """After a mark or a call: a call, the end of the calls, or text after all."""
        form = self._form
        assert form is not None
        separators = _SEPARATORS.match(self._held)
        start = self._held[separators.end() if separators else 0 :]
        named = _NAMED.match(start) if form.has_names else None
        if start.startswith("{") or (named and named[1] in self._tools):
            skipped = len(self._held) - len(start) + (named.end() if named else 0)
            self._raw += self._held[:skipped]
            self._held = self._held[skipped:]
            self._begin_call(named[1] if named else None)
            return True
        for mark in filter(None, (form.close, form.open)):
            if start.startswith(mark):
                self._raw += self._held[: -len(start)] + mark
                self._held = start[len(mark) :]
                if mark == form.close:
                    self._leave_calls(self._held)
                return True
        may_go_on = (
            start in ("", "[") or form.open.startswith(start) or form.close.startswith(start)
        )
        if may_go_on or (form.has_names and _NAMED_SO_FAR.fullmatch(start)):
            return False
        self._leave_calls(start)
        return True

    def _leave_calls(self, rest: str) -> None:
        """The calls are over, and the rest is text; all of it, where there was no call."""
        self._state = _State.TEXT
        raw, self._raw = self._raw, ""
        if self._has_called:
            self._held, self._is_skipping = rest, True
        else:
            self._say(raw)

    def _begin_call(self, name: str | None = None) -> None:
        self._call = CallReader(self._tools, name)
        self._num_told, self._is_call_told = 0, False
        self._state = _State.CALL

    def _read_call(self) -> bool:
        call = self._call
        assert call is not None
        held, self._held = self._held, ""
        self._held = call.feed(held)
        if call.is_refused:
            self._give_up_call()
            return True
        if not call.has_begun:
            return False
        self._tell_call(call)
        if call.has_ended:
            self._call = None
            self._num_calls += 1
            self._has_called = True
            self._raw, self._state = "", _State.BETWEEN_CALLS
        return call.has_ended

    def _tell_call(self, call: CallReader) -> None:
        """Give out what is new of a call whose name is certain."""
        if self._num_calls and not self._is_parallel:
            return
        new = call.arguments(self._num_told)
        if call.name is not None and not self._is_call_told:
            self._is_call_told = True
            self._deltas.append(ToolCallDelta(self._num_calls, new, self._new_id(), call.name))
        elif new:
            self._deltas.append(ToolCallDelta(self._num_calls, new))
        self._num_told += len(new)

    def _give_up_call(self) -> None:
        """It was none: all of it is text, in which another one may begin."""
        call, self._call = self._call, None
        assert call is not None
        raw, self._raw = self._raw, ""
        self._say(raw)
        self._held = call.text + self._held
        self._state = _State.TEXT

    def _up_to(self, mark: str) -> tuple[str, str]:
        """What is held up to a mark; and the mark, with the white space before it, if it is there.

        What may become the mark stays held.
        """
        held = self._held
        end = held.find(mark)
        if end >= 0:
            certain = held[:end].rstrip()
            self._held = held[end + len(mark) :]
            return certain, held[len(certain) : end + len(mark)]
        num_kept = next(
            n
            for n in range(min(len(mark), len(held)), -1, -1)
            if mark.startswith(held[len(held) - n :])
        )
        certain = held[: len(held) - num_kept].rstrip()
        self._held = held[len(certain) :]
        return certain, ""

    def _say(self, text: str) -> None:
        text = text.lstrip() if self._is_skipping else text
        if text:
            if self._is_skipping and self._has_text:
                text = f"\n{text}"
            self._is_skipping, self._has_text = False, True
            self._deltas.append(text)

    def _think_aloud(self, text: str) -> None:
        text = text.lstrip() if self._is_skipping else text
        if text:
            self._is_skipping = False
            self._deltas.append(Reasoning(text))
