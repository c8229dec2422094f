"""A message as it comes, in Anthropic's events."""

import json
from collections.abc import Mapping
from typing import Any

from rest_framework.exceptions import APIException

from inference.api.sse_cursor import SSEWriter
from inference.models import GenerationTask
from inference.openai.answers import TextStream
from inference.openai.errors import AnswerVoid
from inference.openai.messages.errors import body_of
from inference.openai.messages.response import is_answer, message_head, stop_of, usage_of
from monitoring.streams.delta_stream import Delta


class MessageWriter(SSEWriter):
    """Writes the events of one message, whose blocks follow one another."""

    def __init__(self, task: GenerationTask, *, shows_thinking: bool) -> None:
        super().__init__(None)
        self._task = task
        self._shows_thinking = shows_thinking
        self._has_begun = False
        self._num_blocks = 0
        # What the block that is open has: text, thinking, or the call with this index.
        self._open: str | int | None = None
        self._blocks_of_calls: dict[int, int] = {}

    def delta(self, delta: Delta) -> bytes:
        if delta.tool_call is not None:
            return self._tool_call(delta.tool_call)
        if delta.reasoning:
            if not self._shows_thinking:
                return b""
            start = {"type": "thinking", "thinking": "", "signature": ""}
            part = {"type": "thinking_delta", "thinking": delta.reasoning}
            return self._block("thinking", start) + self._delta(part)
        start = {"type": "text", "text": ""}
        return self._block("text", start) + self._delta({"type": "text_delta", "text": delta.text})

    def restart(self, attempt: int) -> bytes:
        raise AnswerVoid

    def end(self, task: GenerationTask) -> bytes:
        if not is_answer(task):
            return b""  # the error follows
        reason, sequence = stop_of(task)
        events = self._begin() + self._close()
        events += _event(
            "message_delta",
            delta={"stop_reason": reason, "stop_sequence": sequence},
            usage=usage_of(task),
        )
        return events + _event("message_stop")

    def _tool_call(self, part: dict[str, Any]) -> bytes:
        function, events = part["function"], b""
        if "id" in part:
            start = {"type": "tool_use", "id": part["id"], "name": function["name"], "input": {}}
            events = self._block(part["index"], start)
            self._blocks_of_calls[part["index"]] = self._num_blocks - 1
        if function["arguments"]:
            delta = {"type": "input_json_delta", "partial_json": function["arguments"]}
            block = self._blocks_of_calls[part["index"]]
            events += _event("content_block_delta", index=block, delta=delta)
        return events

    def _begin(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return _event("message_start", message=message_head(self._task)) + _event("ping")

    def _block(self, kind: str | int, start: Mapping[str, Any]) -> bytes:
        """Have a block of this kind open."""
        if self._open == kind:
            return b""
        events = self._begin() + self._close()
        self._open = kind
        self._num_blocks += 1
        return events + _event(
            "content_block_start", index=self._num_blocks - 1, content_block=start
        )

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._num_blocks - 1, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._num_blocks - 1)


def message_stream(task: GenerationTask, *, shows_thinking: bool) -> TextStream:
    """The events of the answer."""
    writer = MessageWriter(task, shows_thinking=shows_thinking)
    return TextStream([task], [writer], lambda _: b"", _error_event, is_answer=is_answer)


def _error_event(error: APIException) -> bytes:
    """What breaks a stream off; the SDK raises it."""
    return _event(**body_of(error))


def _event(type: str, **fields: Any) -> bytes:
    """One event with its name, in ASCII: not every client agrees on what ends a line."""
    data = json.dumps({"type": type, **fields}, separators=(",", ":"))
    return f"event: {type}\ndata: {data}\n\n".encode("ascii")
