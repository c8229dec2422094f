"""A chat completion as it comes, in chunks."""

from collections.abc import Mapping
from typing import Any

from inference.openai.completions.chat_response import choice_logprobs
from inference.openai.completions.chunks import ChunkWriter
from monitoring.streams.delta_stream import Delta


class ChatChunkWriter(ChunkWriter):
    """The first chunk of a choice has the role, and each other one what is new."""

    id_prefix, kind = "chatcmpl", "chat.completion.chunk"

    def __init__(self, head: Mapping[str, Any], index: int) -> None:
        super().__init__(head, index)
        self._has_begun = False

    def delta(self, delta: Delta) -> bytes:
        if delta.tool_call:
            news: dict[str, Any] = {"tool_calls": [delta.tool_call]}
        elif delta.reasoning:
            news = {"reasoning_content": delta.reasoning}
        else:
            news = {"content": delta.text}
        return self._role() + self.chunk(delta=news, logprobs=choice_logprobs(delta.logprobs))

    def last(self, finish_reason: str) -> bytes:
        return self._role() + self.chunk(finish_reason, delta={})

    def _role(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return self.chunk(delta={"role": "assistant", "content": "", "refusal": None})
