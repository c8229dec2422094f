"""Streams of completions: chunks as they come, then the usage where it is wanted, then [DONE]."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rest_framework.exceptions import APIException

from inference.api.sse_cursor import SSEWriter
from inference.models import GenerationTask
from inference.openai.answers import TextStream
from inference.openai.completions.chat_response import finish_reason_of, head, result_of, usage_of
from inference.openai.errors import AnswerVoid, body_of
from inference.openai.fields import CompletionRequest
from inference.openai.tasks import is_answered

_DONE = b"data: [DONE]\n\n"


class ChunkWriter(SSEWriter):
    """Writes the chunks of one choice; `id_prefix` and `kind` are those of its kind of stream."""

    id_prefix: ClassVar[str]
    kind: ClassVar[str]

    def __init__(self, head: Mapping[str, Any], index: int) -> None:
        """`head`: what all chunks of the stream have."""
        super().__init__(None)
        self._head = head
        self._index = index

    def restart(self, attempt: int) -> bytes:
        raise AnswerVoid

    def end(self, task: GenerationTask) -> bytes:
        """Nothing for a task that has failed, whose error follows."""
        return self.last(finish_reason_of(result_of(task))) if is_answered(task) else b""

    def last(self, finish_reason: str) -> bytes:
        """The last chunk of the choice."""
        raise NotImplementedError

    def chunk(
        self,
        finish_reason: str | None = None,
        logprobs: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> bytes:
        """One chunk, `fields` being those of its choice."""
        beside = {"logprobs": logprobs, "finish_reason": finish_reason}
        return _event({**self._head, "choices": [{"index": self._index, **fields, **beside}]})


def chunk_stream(
    tasks: Sequence[GenerationTask], asked: CompletionRequest, writer: type[ChunkWriter]
) -> TextStream:
    """The chunks of all choices, each written by a writer of its own."""
    first = head(tasks, writer.id_prefix, writer.kind)
    every_chunk = {**first, **({"usage": None} if asked.has_usage_chunk else {})}

    def ending(ended: Sequence[GenerationTask]) -> bytes:
        if not asked.has_usage_chunk:
            return _DONE
        usage = usage_of(ended, asked.num_choices)
        return _event({**first, "choices": [], "usage": usage}) + _DONE

    writers = [writer(every_chunk, index) for index in range(len(tasks))]
    return TextStream(tasks, writers, ending, _error_event)


def _event(body: Any) -> bytes:
    """One event without a name, in ASCII: not every client agrees on what ends a line."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode("ascii") + b"\n\n"


def _error_event(error: APIException) -> bytes:
    """What breaks a stream off; the SDK raises it."""
    return _event(body_of(error))
