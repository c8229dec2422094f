"""Which slot of the model's memory holds which tokens, and which prompts can start from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.engine.runner import SequenceMemory
from inference.engine.saved_state import SavedState

# To wait for a prompt that is being computed, or to put back a history, must save so many tokens.
MIN_COPY_TOKENS = 8
# A copy moves all that the source holds: so many tokens are at most as much work as to compute one.
COPIED_PER_COMPUTED = 256
# Tokens that a deterministic sequence computes at a time: llama.cpp's kernels add up numbers in
# another order for another number of tokens. Its attention is faster from 64 on, on a CPU.
CHUNK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Allocation:
    """A slot, and how many tokens of the prompt its cells hold already."""

    slot: int
    num_cached_tokens: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """`tokens` are those whose keys and values it holds, from position 0.

    `max_cells` is what a running sequence has reserved, 0 = idle. The first
    `num_deterministic_tokens` were computed alone, in whole chunks. All are of one owner.
    """

    number: int
    owner: str = ""
    tokens: list[int] = field(default_factory=list)
    num_deterministic_tokens: int = 0
    max_cells: int = 0
    used_at: int = 0

    @property
    def is_idle(self) -> bool:
        return self.max_cells == 0

    @property
    def num_cells(self) -> int:
        return self.max_cells or len(self.tokens)

    def hold(self, tokens: list[int], num_deterministic_tokens: int = 0) -> None:
        self.tokens = tokens
        self.num_deterministic_tokens = min(num_deterministic_tokens, len(tokens))


class KVCache:
    """The slots of a model's memory: the books, and every change of the memory they describe.

    A cell is the keys and values of one token in all layers. A sequence reserves the cells of
    its whole life when it is admitted, so that no running sequence is ever out of memory. What
    an ended sequence has computed stays, and prompts of its owner that begin alike start from it,
    until the slot or its cells are needed, least recently used first. Nobody learns from the number
    of cached tokens what others have asked.
    """

    def __init__(
        self,
        memory: SequenceMemory,
        num_slots: int,
        num_cells: int,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> None:
        """Empties the memory, of which nothing else must change anything from then on.

        `chunk_tokens`: how many a deterministic sequence computes at a time.
        """
        self.num_cells = num_cells
        self.chunk_tokens = chunk_tokens
        self._memory = memory
        self._slots = [_Slot(number) for number in range(num_slots)]
        self._num_uses = 0
        for number in range(num_slots):
            self.forget(number)

    @property
    def num_free_slots(self) -> int:
        return sum(slot.is_idle for slot in self._slots)

    @property
    def num_free_cells(self) -> int:
        """Cells that no running sequence has reserved."""
        return self.num_cells - sum(slot.max_cells for slot in self._slots)

    def allocate(
        self,
        prompt_tokens: list[int],
        max_cells: int,
        *,
        owner: str = "",
        is_deterministic: bool = False,
        saved: SavedState | None = None,
    ) -> Allocation | None:
        """Reserve a slot and `max_cells` cells; None while there is no room.

        The slot then holds the longest part of the prompt that memory had, or that was `saved`, but
        never all of it: the last token is to be computed, because its logits are needed. Of a
        deterministic sequence, whole chunks that another one has computed.
        """
        if not self._has_room(max_cells):
            return None
        num_saved = self._num_saved(saved, prompt_tokens, is_deterministic)
        if saved is not None and num_saved >= MIN_COPY_TOKENS + max(
            self._num_reusable(slot, prompt_tokens, owner, is_deterministic) for slot in self._slots
        ):
            return self._restore(saved, num_saved, max_cells, owner)
        slot = self._place(prompt_tokens, owner, is_deterministic)
        self._reserve(slot, max_cells, owner)
        return Allocation(slot.number, len(slot.tokens))

    def resume(self, saved: SavedState, max_cells: int, *, owner: str = "") -> Allocation | None:
        """Reserve a slot that holds what was saved of the sequence; None while there is no room.

        It holds nothing where that could not be put back.
        """
        if not self._has_room(max_cells):
            return None
        return self._restore(saved, len(saved.tokens), max_cells, owner)

    def save(self, slot: int) -> SavedState | None:
        """A copy of what the slot holds; None when that failed."""
        held = self._slots[slot]
        if (data := self._memory.save(slot)) is None:
            return None
        return SavedState(list(held.tokens), held.num_deterministic_tokens, data)

    def state_bytes(self, slot: int) -> int:
        """How many bytes `save` would take."""
        return self._memory.state_bytes(slot)

    def append(self, slot: int, tokens: list[int], *, is_deterministic: bool = False) -> None:
        """Note that these tokens have been computed and follow those the slot held."""
        held = self._slots[slot]
        is_whole = is_deterministic and len(tokens) == self.chunk_tokens
        if is_whole and held.num_deterministic_tokens == len(held.tokens):
            held.num_deterministic_tokens += len(tokens)
        held.tokens.extend(tokens)
        if len(held.tokens) > held.max_cells:
            raise AssertionError("a sequence outgrew its cells")

    def cut(self, slot: int, num_tokens: int) -> int:
        """Remove what was computed behind the tokens the slot holds; return how many are left.

        `num_tokens` of them, or none where memory has failed.
        """
        if not self._memory.keep_prefix(slot, num_tokens):
            self._slots[slot].hold([])
        return len(self._slots[slot].tokens)

    def release(self, slot: int) -> None:
        """The sequence has ended: free what it reserved, keep what it has computed."""
        self._slots[slot].max_cells = 0
        self._touch(self._slots[slot])

    def forget(self, slot: int) -> None:
        """Empty the slot, for instance because its memory is undefined after an error."""
        self._memory.remove_sequence(slot)
        self._slots[slot].hold([])

    def num_held(self, prompt_tokens: list[int], owner: str) -> int:
        """How many tokens of a prompt a slot of the owner has at most, though it may not be cut."""
        held = (slot.tokens for slot in self._slots if slot.owner == owner)
        return max((common_prefix_length(tokens, prompt_tokens) for tokens in held), default=0)

    def tokens(self, slot: int) -> list[int]:
        """The tokens whose keys and values the slot holds, from position 0."""
        return self._slots[slot].tokens

    def gains_by_copy(
        self,
        prompt_tokens: list[int],
        source: int,
        num_tokens: int,
        *,
        is_deterministic: bool = False,
    ) -> bool:
        """Whether a copy of `num_tokens`, once `source` has them, beats what other slots have."""
        if not self._memory.can_copy or num_tokens < MIN_COPY_TOKENS:
            return False
        owner = self._slots[source].owner
        others = [slot for slot in self._slots if slot.number != source]
        best = max(
            (self._num_reusable(slot, prompt_tokens, owner, is_deterministic) for slot in others),
            default=0,
        )
        return num_tokens - best >= MIN_COPY_TOKENS

    def _place(self, prompt_tokens: list[int], owner: str, is_deterministic: bool) -> _Slot:
        """The idle slot to run in, holding as much of the prompt as is worth having.

        A history of which the prompt keeps little is left for its conversation to go on with:
        what they share is copied to the slot that is lost most easily.
        """
        reusable = {
            slot: self._num_reusable(slot, prompt_tokens, owner, is_deterministic)
            for slot in self._slots
        }
        idle = [slot for slot in self._slots if slot.is_idle]
        source = max(self._slots, key=reusable.__getitem__)
        expendable = self._expendable()
        home = max(
            (s for s in idle if s is expendable or 0 < len(s.tokens) <= 2 * reusable[s]),
            key=lambda slot: (reusable[slot], -len(slot.tokens)),
        )
        cost = len(source.tokens) // COPIED_PER_COMPUTED
        if self._memory.can_copy and reusable[source] - reusable[home] > cost:
            num_tokens = reusable[source]
            done = self._memory.copy_prefix(source.number, expendable.number, num_tokens)
            held = source.tokens[:num_tokens] if done else []
            expendable.hold(held, source.num_deterministic_tokens)
            return expendable
        num_tokens = reusable[home]
        if num_tokens == 0:
            self.forget(home.number)
        elif num_tokens < len(home.tokens):
            done = self._memory.keep_prefix(home.number, num_tokens)
            home.hold(home.tokens[:num_tokens] if done else [], home.num_deterministic_tokens)
        return home

    def _restore(
        self, saved: SavedState, num_tokens: int, max_cells: int, owner: str
    ) -> Allocation:
        """Reserve a slot and put back the first tokens of what was saved, or none if that fails."""
        slot, memory = self._expendable(), self._memory
        self.forget(slot.number)
        self._reserve(slot, max_cells, owner)
        is_done = memory.restore(slot.number, saved.data)
        if is_done and num_tokens < len(saved.tokens):
            is_done = memory.can_keep_prefix(slot.number, num_tokens)
            is_done = is_done and memory.keep_prefix(slot.number, num_tokens)
        if is_done:
            slot.hold(saved.tokens[:num_tokens], saved.num_deterministic_tokens)
        else:
            self.forget(slot.number)
        return Allocation(slot.number, len(slot.tokens))

    def _has_room(self, max_cells: int) -> bool:
        return self.num_free_slots > 0 and max_cells <= self.num_free_cells

    def _reserve(self, slot: _Slot, max_cells: int, owner: str) -> None:
        slot.owner = owner
        slot.max_cells = max_cells
        self._touch(slot)
        # Where sequences share one buffer, idle slots give way until all cells fit into it; buffers
        # of their own are as large as a sequence.
        while sum(each.num_cells for each in self._slots) > self.num_cells:
            kept = [each for each in self._slots if each.is_idle and each.tokens]
            self.forget(min(kept, key=lambda each: each.used_at).number)

    def _expendable(self) -> _Slot:
        """The idle slot whose loss costs least."""
        return min((slot for slot in self._slots if slot.is_idle), key=self._value)

    def _num_saved(
        self, saved: SavedState | None, prompt_tokens: list[int], is_deterministic: bool
    ) -> int:
        """How many tokens of the prompt a sequence could take over from what was saved."""
        if saved is None:
            return 0
        length = self._num_common(saved, prompt_tokens, is_deterministic)
        return length if self._memory.can_cut or length == len(saved.tokens) else 0

    def _num_reusable(
        self, slot: _Slot, prompt_tokens: list[int], owner: str, is_deterministic: bool
    ) -> int:
        """How many tokens of the prompt a sequence of the owner could take over from the slot."""
        if slot.owner != owner:
            return 0
        if is_deterministic and not self._memory.has_all_cells(slot.number):
            return 0
        length = self._num_common(slot, prompt_tokens, is_deterministic)
        can_keep = length > 0 and self._memory.can_keep_prefix(slot.number, length)
        return length if can_keep else 0

    def _num_common(
        self, held: _Slot | SavedState, prompt_tokens: list[int], is_deterministic: bool
    ) -> int:
        """How many tokens both begin with, but never the whole prompt; or whole chunks of them."""
        length = min(common_prefix_length(held.tokens, prompt_tokens), len(prompt_tokens) - 1)
        if is_deterministic:
            length = min(length, held.num_deterministic_tokens)
            length -= length % self.chunk_tokens
        return length

    def _value(self, slot: _Slot) -> tuple[bool, int, int]:
        """What is lost with an idle slot: the slot of the least value is given away first.

        Among histories, those beside running sequences go first, because llama.cpp computes
        sequences together only where their ids follow one another.
        """
        first, last = max(slot.number - 1, 0), slot.number + 1
        num_neighbours = sum(not other.is_idle for other in self._slots[first : last + 1])
        return bool(slot.tokens), -num_neighbours, slot.used_at

    def _touch(self, slot: _Slot) -> None:
        self._num_uses += 1
        slot.used_at = self._num_uses


def common_prefix_length(one: Sequence[object], other: Sequence[object]) -> int:
    """How many tokens, or characters, two sequences have in common from the start."""
    pairs = enumerate(zip(one, other, strict=False))
    shorter = min(len(one), len(other))
    return next((index for index, (a, b) in pairs if a != b), shorter)
