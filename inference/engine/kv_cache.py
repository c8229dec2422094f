"""Who holds which part of the model's memory."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Allocation:
    """A slot, and how many tokens of the prompt its cells hold already."""

    slot: int
    num_cached_tokens: int = 0


@dataclass(slots=True)
class _Slot:
    max_cells: int
    tokens: list[int] = field(default_factory=list)


class KVCache:
    """Which sequence id (slot) holds which tokens, and how many cells are spoken for.

    A cell is the keys and values of one token in all layers. A sequence reserves the cells of
    its whole life when it is admitted, so that no running sequence is ever out of memory.
    The cache only keeps the books: the caller clears the runner's memory of a slot it frees.
    """

    def __init__(self, num_slots: int, num_cells: int) -> None:
        self.num_slots = num_slots
        self.num_cells = num_cells
        self.num_free_cells = num_cells
        self._free_slots = list(range(num_slots))
        self._used: dict[int, _Slot] = {}

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    def allocate(self, prompt_tokens: list[int], max_cells: int) -> Allocation | None:
        """Reserve a slot and `max_cells` cells; None while there is no room.

        The prompt is what a slot with a common prefix will be chosen by; nothing of an ended
        sequence is kept yet, so that every prompt starts from nothing.
        """
        if not self._free_slots or max_cells > self.num_free_cells:
            return None
        slot = heapq.heappop(self._free_slots)
        self._used[slot] = _Slot(max_cells)
        self.num_free_cells -= max_cells
        return Allocation(slot)

    def append(self, slot: int, tokens: Iterable[int]) -> None:
        """Note that these tokens have been computed and follow those the slot held."""
        held = self._used[slot]
        held.tokens.extend(tokens)
        if len(held.tokens) > held.max_cells:
            raise AssertionError("a sequence outgrew its cells")

    def tokens(self, slot: int) -> list[int]:
        """The tokens whose keys and values the slot holds, from position 0."""
        return self._used[slot].tokens

    def free(self, slot: int) -> None:
        """Give the slot and its cells back."""
        self.num_free_cells += self._used.pop(slot).max_cells
        heapq.heappush(self._free_slots, slot)
