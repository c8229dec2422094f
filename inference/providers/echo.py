"""A provider that says the last message back, word by word: for tests, demos and benchmarks."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable

from conversations.models import ChatMessage, text_of
from inference.engine.sequence import FinishReason
from inference.engine.text import TextAssembler
from inference.models import Queue
from inference.providers.base import GenerationRequest, Progress, Provider


def count_tokens(messages: Iterable[ChatMessage]) -> int:
    """Words, which are its tokens."""
    return sum(len(text_of(message).split()) for message in messages)


class EchoProvider(Provider):
    """Instant and deterministic, so sampling parameters make no difference.

    A token is a word with its white space. `config.delay_ms` is waited before each.
    """

    queue = Queue.API
    unsupported_params = frozenset({"logprobs", "logit_bias"})

    async def generate(
        self, request: GenerationRequest, progress: Progress
    ) -> AsyncGenerator[str, None]:
        delay_seconds = self.model.config.get("delay_ms", 0) / 1000
        max_tokens = request.params["max_tokens"]
        words = re.findall(r"\s*\S+\s*", text_of(request.messages[-1]))
        progress.prompt_tokens = count_tokens(request.messages)
        text = TextAssembler(tuple(request.params["stop_sequences"]))
        for word in words[:max_tokens]:
            if delay_seconds:
                await asyncio.sleep(delay_seconds)
            progress.completion_tokens += 1
            yield text.push(word.encode())
            if text.is_stopped:
                break
        yield text.finish()
        if text.stopped_by is not None:
            progress.extra["stop_sequence"] = text.stopped_by
        cut = len(words) > max_tokens and not text.is_stopped
        progress.finish_reason = FinishReason.LENGTH if cut else FinishReason.STOP
