"""What goes into the next batch, and how much of it may be prompts."""

from collections import deque

from inference.engine.kv_cache import KVCache, common_prefix_length
from inference.engine.runner import Chunk
from inference.engine.sequence import Sequence

TARGET_STEP_SECONDS = 0.2
# Of a prompt that is alone: nobody waits but who may cancel it.
TARGET_ALONE_SECONDS = 0.4
MIN_PREFILL_TOKENS = 16
# llama.cpp's attention on a CPU computes so many at a time: the next ones cost as much as all.
TILE_TOKENS = 64


class PrefillBudget:
    """Prompt tokens that fit into a step of about so many seconds, on whatever machine.

    A step is how long a cancellation and the running answers can wait, so it must not last
    longer where the machine is slow. It starts with few tokens and follows what is measured.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tokens_per_second = MIN_PREFILL_TOKENS / TARGET_STEP_SECONDS

    def num_tokens(self, seconds: float, *, is_beside_answers: bool) -> int:
        """Whole tiles, which llama.cpp computes after one token of each sequence beside answers."""
        affordable = int(self._tokens_per_second * seconds)
        # Three quarters of a tile take nearly as long as all of it.
        if num_tiles := (affordable + TILE_TOKENS // 4) // TILE_TOKENS:
            affordable = num_tiles * TILE_TOKENS + is_beside_answers
        return min(max(affordable, MIN_PREFILL_TOKENS), self._max_tokens)

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Learn from a step that computed so many tokens beside one of each running answer.

        Fewer tokens than the minimum say little: most of their time is the step's own.
        """
        if num_tokens >= min(MIN_PREFILL_TOKENS, self._max_tokens):
            self._tokens_per_second = num_tokens / max(seconds, 1e-6)


class Scheduler:
    """Waiting and running sequences, and the rule by which they share a batch.

    Running answers go first, one token each, so that none stalls behind a long prompt; then more of
    their tokens where more are known; then the prompts of admitted sequences, in chunks; then
    waiting sequences are admitted, strictly in order of arrival (none overtakes one that waits for
    more cells, so none starves). One that begins like a prompt being computed waits until it can
    copy what they share.

    A deterministic sequence has batches of its own, in chunks of one size, so that they are the
    same in any company. They take turns, after each batch of the others one of them.
    """

    def __init__(self, kv_cache: KVCache, *, max_num_seqs: int, max_batch_tokens: int) -> None:
        self.kv_cache = kv_cache
        self.prefill_budget = PrefillBudget(max_batch_tokens)
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._is_deterministic_next = False

    def add(self, sequence: Sequence) -> None:
        """Queue it behind all that wait; one that goes first, behind those of its kind."""
        num_first = sum(each.goes_first for each in self.waiting)
        self.waiting.insert(num_first if sequence.goes_first else len(self.waiting), sequence)

    @property
    def is_short_of_room(self) -> bool:
        """Whether urgent sequences wait that do not fit in beside those that run."""
        urgent = [each for each in self.waiting if each.is_urgent]
        return bool(urgent) and not self.has_room(urgent)

    def has_room(self, sequences: list[Sequence]) -> bool:
        """Whether they could be admitted together."""
        num_free = min(self.max_num_seqs - len(self.running), self.kv_cache.num_free_slots)
        num_cells = sum(sequence.max_cells for sequence in sequences)
        return len(sequences) <= num_free and num_cells <= self.kv_cache.num_free_cells

    def remove(self, sequence: Sequence) -> None:
        """Take an ended sequence out, whichever queue it is in, and free its slot."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.kv_cache.release(sequence.slot)
        sequence.slot = None

    def schedule(self) -> list[tuple[Sequence, Chunk]]:
        """The next batch, in the order of slots: one chunk a sequence."""
        batch = (self._is_deterministic_next and self._schedule_alone()) or self._schedule_shared()
        self._is_deterministic_next = not self._is_deterministic_next
        return batch or self._schedule_alone()

    def _schedule_alone(self) -> list[tuple[Sequence, Chunk]]:
        """The next chunk of the deterministic sequence that has waited longest for its turn."""
        while self._admit(is_deterministic=True):
            pass
        sequence = next((each for each in self.running if each.params.deterministic), None)
        if sequence is None:
            return []
        self.running.remove(sequence)
        self.running.append(sequence)
        return [(sequence, _next_chunk(sequence, self.kv_cache.chunk_tokens))]

    def _schedule_shared(self) -> list[tuple[Sequence, Chunk]]:
        """The next batch of the other sequences, within both budgets."""
        running = [sequence for sequence in self.running if not sequence.params.deterministic]
        decoding = [sequence for sequence in running if not sequence.is_prefilling]
        prefilling = [sequence for sequence in running if sequence.is_prefilling]
        batch: list[tuple[Sequence, Chunk]] = []
        is_alone = len(self.running) + len(self.waiting) == 1
        seconds = TARGET_ALONE_SECONDS if is_alone else TARGET_STEP_SECONDS
        affordable = self.prefill_budget.num_tokens(seconds, is_beside_answers=bool(decoding))
        budget = min(affordable, self.max_batch_tokens - len(decoding))
        while self.waiting and self.waiting[0].is_urgent:
            if (urgent := self._admit(is_deterministic=False)) is None:
                break
            prefilling.append(urgent)
        prefilling.sort(key=lambda sequence: not sequence.is_urgent)
        for sequence in decoding:
            batch.append((sequence, chunk := _next_chunk(sequence, 1 + budget)))
            budget -= len(chunk.tokens) - 1
        while budget > 0:
            next_one = prefilling.pop(0) if prefilling else self._admit(is_deterministic=False)
            if next_one is None:
                break
            batch.append((next_one, chunk := _next_chunk(next_one, budget)))
            budget -= len(chunk.tokens)
        batch.sort(key=lambda scheduled: scheduled[1].slot)
        return batch

    def _admit(self, *, is_deterministic: bool) -> Sequence | None:
        """Start the one that has waited longest; None when it must wait, or is not of this kind."""
        if not self.waiting or len(self.running) >= self.max_num_seqs:
            return None
        sequence = self.waiting[0]
        if sequence.params.deterministic != is_deterministic or self._can_soon_share(sequence):
            return None
        max_cells, owner, saved = sequence.max_cells, sequence.owner, sequence.saved
        is_new = sequence.num_computed_tokens == 0
        if saved is None or is_new:
            allocation = self.kv_cache.allocate(
                sequence.prompt_tokens,
                max_cells,
                owner=owner,
                is_deterministic=is_deterministic,
                saved=saved,
            )
        else:
            allocation = self.kv_cache.resume(saved, max_cells, owner=owner)
        if allocation is None:
            return None
        sequence.slot, sequence.saved = allocation.slot, None
        sequence.num_computed_tokens = allocation.num_cached_tokens
        if is_new:
            sequence.num_cached_tokens = allocation.num_cached_tokens
        self.running.append(self.waiting.popleft())
        return sequence

    def _can_soon_share(self, sequence: Sequence) -> bool:
        """Whether a prompt being computed will bring more of this one than there is now.

        It ends with the part they share, which never takes longer than computing it twice.
        """
        prompt, is_deterministic = sequence.prompt_tokens, sequence.params.deterministic
        if sequence.num_computed_tokens > 0:
            return False
        for other in self.running:
            is_own = other.owner == sequence.owner
            if is_own and other.is_prefilling and other.slot is not None:
                shared = common_prefix_length(other.prompt_tokens, prompt)
                if is_deterministic:
                    is_whole = other.params.deterministic
                    shared -= shared % self.kv_cache.chunk_tokens if is_whole else shared
                is_coming = shared > other.num_computed_tokens
                if is_coming and self.kv_cache.gains_by_copy(
                    prompt, other.slot, shared, is_deterministic=is_deterministic
                ):
                    return True
        return False


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
