"""A chat completion as it comes, in chunks."""

import json
from collections.abc import Sequence
from typing import Any

from rest_framework.exceptions import APIException

from inference.api.sse_cursor import SSEWriter
from inference.models import GenerationTask
from inference.openai.answers import TextStream
from inference.openai.chat_response import completion_id, finish_reason_of, result_of, usage_of
from inference.openai.errors import AnswerVoid, body_of
from monitoring.streams.delta_stream import Delta

DONE = b"data: [DONE]\n\n"


class ChatChunks(SSEWriter):
    """Writes the chunks of one choice; the first of them has the role."""

    def __init__(self, head: dict[str, Any], index: int) -> None:
        """`head`: what all chunks of the stream have."""
        super().__init__(None)
        self._head = head
        self._index = index
        self._has_begun = False

    def delta(self, delta: Delta) -> bytes:
        return self._role() + self._chunk({"content": delta.text})

    def restart(self, attempt: int) -> bytes:
        raise AnswerVoid

    def end(self, task: GenerationTask) -> bytes:
        if task.status != GenerationTask.Status.COMPLETED:
            return b""  # the error follows
        return self._role() + self._chunk({}, finish_reason_of(result_of(task)))

    def _role(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {
            "index": self._index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return data_event(self._head | {"choices": [choice]})


def chat_stream(tasks: Sequence[GenerationTask], *, has_usage_chunk: bool) -> TextStream:
    """The chunks of all choices, then that of the usage where it is wanted."""
    head = {
        "id": completion_id(tasks[0]),
        "object": "chat.completion.chunk",
        "created": int(tasks[0].created_at.timestamp()),
        "model": tasks[0].model_name,
        "system_fingerprint": None,
        **({"usage": None} if has_usage_chunk else {}),
    }

    def ending(ended: Sequence[GenerationTask]) -> bytes:
        usage = data_event(head | {"choices": [], "usage": usage_of(ended)})
        return usage + DONE if has_usage_chunk else DONE

    writers = [ChatChunks(head, index) for index in range(len(tasks))]
    return TextStream(tasks, writers, ending, error_event)


def data_event(body: Any) -> bytes:
    """One event without a name, in ASCII: not every client agrees on what ends a line."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode("ascii") + b"\n\n"


def error_event(error: APIException) -> bytes:
    """What breaks a stream off; the SDK raises it."""
    return data_event(body_of(error))
