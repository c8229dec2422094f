"""Batches of texts of about equal length, from all requests."""

import threading
from collections import deque
from dataclasses import dataclass, field

from django.conf import settings

from inference.embeddings.encoders import base
from inference.embeddings.encoders.base import Encoder, Vectors
from inference.embeddings.request_queue import QueuedRequest
from inference.errors import ErrorCode, InferenceError

# Larger batches do not fit into a core's cache.
_CPU_BATCH_TOKENS = 1024
_GPU_BATCH_TOKENS = 16_384
# The last texts are split between the threads, but into batches of at least this.
_MIN_BATCH_TOKENS = 128
# A batch costs as much as some dozens of tokens before the first is computed, since all weights are
# read: about as many that pad it are cheaper than another batch.
_TOKENS_PER_PADDING = 32


@dataclass(eq=False, slots=True)
class RunningRequest:
    """A request that this worker computes; `lengths`: the tokens of each text that are read."""

    queued: QueuedRequest
    encoder: Encoder
    prompt: str
    lengths: list[int]
    truncated: list[int]
    # By the indexes of the texts.
    vectors: dict[int, Vectors] = field(default_factory=dict)

    @classmethod
    def of(cls, queued: QueuedRequest, encoder: Encoder) -> "RunningRequest":
        """Raises InferenceError for an unknown prompt, or a text without tokens."""
        ranking = queued.request.ranking
        if ranking is None or ranking.is_by_cosine:
            prompt = encoder.prompt(queued.request.prompt_name)
        else:
            prompt = ranking.query  # in whose place a cross-encoder takes it
        counts = encoder.count_tokens(queued.request.texts, prompt)
        if 0 in counts:
            message = f"Text {counts.index(0)} has nothing that the model can read: leave it out."
            raise InferenceError(message, ErrorCode.INVALID_REQUEST)
        window = encoder.max_tokens
        truncated = [i for i, count in enumerate(counts) if window and count > window]
        lengths = [min(count, window or count) for count in counts]
        return cls(queued, encoder, prompt, lengths, truncated)

    @property
    def is_complete(self) -> bool:
        return len(self.vectors) == len(self.lengths)


@dataclass(eq=False, slots=True)
class Item:
    """One text of a request, and its tokens."""

    request: RunningRequest
    index: int
    length: int


class Batcher:
    """The waiting texts, from which `num_threads` threads take batches.

    Requests take turns: many texts of one do not keep those of another one waiting. A batch has
    the longest text of the request whose turn it is, and those of any request for the same model
    and prompt that need the least padding. With that, it has at most `max_batch_tokens`, or one
    text that is longer.
    """

    def __init__(self, num_threads: int, max_batch_tokens: int | None = None) -> None:
        """`max_batch_tokens` defaults to EMBEDDING_MAX_BATCH_TOKENS, or a size for the device."""
        default = _CPU_BATCH_TOKENS if base.is_cpu() else _GPU_BATCH_TOKENS
        self._max_batch_tokens = max_batch_tokens or settings.EMBEDDING_MAX_BATCH_TOKENS or default
        self._num_threads = num_threads
        self._waiting: list[Item] = []
        self._turns: deque[RunningRequest] = deque()
        self._incomplete: set[RunningRequest] = set()
        self._change = threading.Condition()

    @property
    def requests(self) -> list[RunningRequest]:
        """The requests that are not complete."""
        with self._change:
            return list(self._incomplete)

    @property
    def num_texts(self) -> int:
        """The number of waiting texts."""
        return len(self._waiting)

    def add(self, request: RunningRequest) -> None:
        items = [Item(request, index, length) for index, length in enumerate(request.lengths)]
        with self._change:
            self._waiting += items
            self._turns.append(request)
            self._incomplete.add(request)
            self._change.notify(len(items))

    def next_batch(self) -> list[Item]:
        """The next batch, longest text first; waits until there is one."""
        with self._change:
            self._change.wait_for(lambda: self._turns)
            turn = self._turns[0]
            self._turns.rotate(-1)
            batch = self._batch_for(turn)
            taken = set(batch)
            self._keep([item for item in self._waiting if item not in taken])
            return batch

    def complete(self, request: RunningRequest) -> bool:
        """Remove a request that has ended or is not wanted; False when it was removed before.

        A batch of it that is being computed goes on.
        """
        with self._change:
            if request not in self._incomplete:
                return False
            self._incomplete.discard(request)
            self._keep([item for item in self._waiting if item.request is not request])
            return True

    def _batch_for(self, turn: RunningRequest) -> list[Item]:
        kind = (turn.encoder, turn.prompt)
        alike = [i for i in self._waiting if (i.request.encoder, i.request.prompt) == kind]
        alike.sort(key=lambda item: item.length, reverse=True)
        first = next(i for i, item in enumerate(alike) if item.request is turn)
        share = sum(item.length for item in alike) // self._num_threads
        max_tokens = min(self._max_batch_tokens, max(_MIN_BATCH_TOKENS, share))
        max_padding = self._max_batch_tokens // _TOKENS_PER_PADDING
        start, end, padding = first, first + 1, 0
        while True:
            # A shorter text is padded itself; for a longer one, all others are.
            longest = alike[start].length
            sides = []
            if end < len(alike):
                sides.append((longest - alike[end].length, start, end + 1))
            if start > 0:
                longer = alike[start - 1].length
                sides.append(((longer - longest) * (end - start), start - 1, end))
            more, next_start, next_end = min(sides, default=(max_padding + 1, start, end))
            padding += more
            num_tokens = (next_end - next_start) * alike[next_start].length
            if padding > max_padding or num_tokens > max_tokens:
                return alike[start:end]
            start, end = next_start, next_end

    def _keep(self, items: list[Item]) -> None:
        self._waiting = items
        left = {item.request for item in items}
        self._turns = deque(request for request in self._turns if request in left)
