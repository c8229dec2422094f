"""What goes into the next batch."""

from collections import deque

from inference.engine.kv_cache import KVCache
from inference.engine.runner import Chunk
from inference.engine.sequence import Sequence


class Scheduler:
    """Waiting and running sequences, and the rule by which they share a batch.

    Running answers go first, one token each, so that none stalls behind a long prompt; then the
    prompts of admitted sequences, in chunks; then waiting sequences are admitted, strictly in
    order of arrival (none overtakes one that waits for more cells, so none starves).
    """

    def __init__(self, kv_cache: KVCache, max_batch_tokens: int) -> None:
        self.kv_cache = kv_cache
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take an ended sequence out, whichever queue it is in, and free its cells."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.kv_cache.free(sequence.slot)
        sequence.slot = None

    def schedule(self) -> list[tuple[Sequence, Chunk]]:
        """The next batch: at most `max_batch_tokens` tokens, one chunk a sequence."""
        batch: list[tuple[Sequence, Chunk]] = []
        budget = self.max_batch_tokens
        prefilling: list[Sequence] = []
        for sequence in self.running:
            if sequence.is_prefilling:
                prefilling.append(sequence)
            else:
                batch.append((sequence, _next_chunk(sequence, budget)))
                budget -= 1
        for sequence in prefilling:
            if budget == 0:
                return batch
            batch.append((sequence, chunk := _next_chunk(sequence, budget)))
            budget -= len(chunk.tokens)
        while budget > 0 and (admitted := self._admit()) is not None:
            batch.append((admitted, chunk := _next_chunk(admitted, budget)))
            budget -= len(chunk.tokens)
        return batch

    def _admit(self) -> Sequence | None:
        if not self.waiting:
            return None
        sequence = self.waiting[0]
        allocation = self.kv_cache.allocate(sequence.prompt_tokens, sequence.max_cells)
        if allocation is None:
            return None
        sequence.slot = allocation.slot
        sequence.num_cached_tokens = sequence.num_computed_tokens = allocation.num_cached_tokens
        self.running.append(self.waiting.popleft())
        return sequence


def _next_chunk(sequence: Sequence, budget: int) -> Chunk:
    if sequence.slot is None:
        raise AssertionError("a sequence that was not admitted is scheduled")
    tokens = sequence.next_tokens(budget)
    return Chunk(
        slot=sequence.slot,
        start_position=sequence.num_computed_tokens,
        tokens=tokens,
        needs_logits=sequence.num_computed_tokens + len(tokens) == sequence.num_tokens,
    )
