"""A chat completion as it comes, in chunks."""

from collections.abc import Mapping
from typing import Any

from inference.models import GenerationTask
from inference.openai.chat_response import finish_reason_of, result_of
from inference.openai.chunks import ChunkWriter
from monitoring.streams.delta_stream import Delta


class ChatChunkWriter(ChunkWriter):
    """The first chunk of a choice has the role, and each other one what is new."""

    def __init__(self, head: Mapping[str, Any], index: int) -> None:
        super().__init__(head, index)
        self._has_begun = False

    def delta(self, delta: Delta) -> bytes:
        return self._role() + self.chunk(delta={"content": delta.text})

    def end(self, task: GenerationTask) -> bytes:
        if task.status != GenerationTask.Status.COMPLETED:
            return b""  # the error follows
        return self._role() + self.chunk(finish_reason_of(result_of(task)), delta={})

    def _role(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return self.chunk(delta={"role": "assistant", "content": "", "refusal": None})
