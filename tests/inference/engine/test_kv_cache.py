"""Slots and cells are handed out once and come back; prompts start from what slots hold."""

import pytest

from inference.engine.kv_cache import (
    COPIED_PER_COMPUTED,
    MIN_COPY_TOKENS,
    Allocation,
    KVCache,
    common_prefix_length,
)
from tests.inference.engine.fake_runner import FakeMemory

SYSTEM = list(range(1, 101))  # 100 tokens that several prompts begin with
LONG = list(range(3 * COPIED_PER_COMPUTED))


def cache_of(
    num_slots: int = 3, num_cells: int | None = None, memory: FakeMemory | None = None
) -> KVCache:
    return KVCache(memory or FakeMemory(), num_slots, num_cells or num_slots * 1000)


def start(cache: KVCache, prompt: list[int], max_cells: int = 1000) -> Allocation:
    """Allocate, and compute what is missing."""
    allocation = cache.allocate(prompt, max_cells)
    assert allocation is not None
    held = cache._memory
    assert isinstance(held, FakeMemory)
    missing = prompt[allocation.num_cached_tokens :]
    held.extend(allocation.slot, allocation.num_cached_tokens, missing)
    cache.append(allocation.slot, missing)
    return allocation


def finish(cache: KVCache, prompt: list[int], max_cells: int = 1000) -> Allocation:
    allocation = start(cache, prompt, max_cells)
    cache.release(allocation.slot)
    return allocation


def test_slots_are_handed_out_until_none_is_left() -> None:
    cache = cache_of(num_slots=2)
    assert [start(cache, [1]).slot, start(cache, [1]).slot] == [0, 1]
    assert cache.allocate([1], 10) is None
    cache.release(0)
    assert cache.num_free_slots == 1
    assert start(cache, [1]).slot == 0


def test_cells_are_reserved_for_the_whole_life_of_a_sequence() -> None:
    cache = cache_of(num_slots=4, num_cells=100)
    start(cache, [1], 60)
    assert cache.allocate([2], 41) is None
    start(cache, [2], 40)
    assert cache.num_free_cells == 0
    cache.release(0)
    assert cache.num_free_cells == 60


def test_sequence_that_outgrows_its_cells_is_noticed() -> None:
    cache = cache_of()
    start(cache, [1, 2], 3)
    cache.append(0, [7])
    assert cache.tokens(0) == [1, 2, 7]
    with pytest.raises(AssertionError):
        cache.append(0, [8])


def test_memory_starts_empty() -> None:
    memory = FakeMemory()
    memory.extend(0, 0, [5, 6])
    cache_of(memory=memory)
    assert memory.tokens == {}


def test_history_is_continued_in_its_slot() -> None:
    cache = cache_of()
    finish(cache, [*SYSTEM, 500])
    finish(cache, [9, 9])
    assert start(cache, [*SYSTEM, 500, 501]) == Allocation(0, 101)


def test_last_token_of_a_prompt_is_always_computed() -> None:
    cache = cache_of()
    finish(cache, [*SYSTEM, 500])
    assert start(cache, SYSTEM) == Allocation(0, len(SYSTEM) - 1)


def test_history_that_keeps_most_is_cut_in_place() -> None:
    cache = cache_of()
    finish(cache, [*SYSTEM, 500, 501])
    assert start(cache, [*SYSTEM, 600]) == Allocation(0, 100)
    assert cache.tokens(0) == [*SYSTEM, 600]


def test_prefix_of_a_long_history_is_copied_and_the_history_survives() -> None:
    cache = cache_of()
    long = [*SYSTEM, *range(500, 700)]
    finish(cache, long)
    assert start(cache, [*SYSTEM, 900]) == Allocation(1, 100)
    assert cache.tokens(0) == long


def test_of_two_histories_the_one_that_loses_less_is_continued() -> None:
    cache = cache_of()
    start(cache, [*SYSTEM, *range(500, 550)])
    start(cache, SYSTEM)
    cache.release(0)
    cache.release(1)
    assert start(cache, [*SYSTEM, 900]) == Allocation(1, 100)


def test_prefix_is_copied_from_a_running_sequence() -> None:
    cache = cache_of()
    start(cache, [*SYSTEM, 500])
    assert start(cache, [*SYSTEM, 600]) == Allocation(1, 100)
    assert cache.tokens(0) == [*SYSTEM, 500]


def test_short_prefix_is_copied_where_little_is_moved_with_it() -> None:
    cache = cache_of()
    start(cache, [*SYSTEM, 500])
    assert start(cache, [*SYSTEM[:1], 600]) == Allocation(1, 1)
    cache = cache_of()
    start(cache, LONG)
    assert start(cache, [*LONG[:3], 600]) == Allocation(1, 0)
    assert start(cache, [*LONG[:4], 700]) == Allocation(2, 4)


def test_short_prefix_of_a_long_history_does_not_cost_it() -> None:
    cache = cache_of(num_slots=2)
    finish(cache, SYSTEM)
    assert start(cache, [*SYSTEM[:3], 600]) == Allocation(1, 3)
    assert cache.tokens(0) == SYSTEM


def test_only_idle_slot_is_used_in_place_whatever_it_holds() -> None:
    cache = cache_of(num_slots=1)
    finish(cache, SYSTEM)
    assert start(cache, [*SYSTEM[:10], 600]) == Allocation(0, 10)
    assert cache.tokens(0) == [*SYSTEM[:10], 600]


def test_copy_is_made_only_for_a_gain_over_what_can_be_had_in_place() -> None:
    cache = cache_of()
    start(cache, [*SYSTEM, 500])
    finish(cache, [*SYSTEM, 600])
    assert start(cache, [*SYSTEM, 700]) == Allocation(1, 100)


def test_unused_slots_are_taken_before_histories() -> None:
    cache = cache_of()
    finish(cache, [1])
    finish(cache, [2])
    assert start(cache, [3]).slot == 2


def test_least_recently_used_history_goes_first() -> None:
    cache = cache_of()
    finish(cache, [1, 1])
    finish(cache, [2, 2])
    finish(cache, [3, 3])
    finish(cache, [1, 1, 1])
    assert finish(cache, [4, 4]).slot == 1
    assert finish(cache, [5, 5]).slot == 2


def test_history_beside_running_sequences_goes_before_one_that_would_leave_a_gap() -> None:
    cache = cache_of(num_slots=4)
    for token in range(4):
        start(cache, [token, token])
    for slot in (3, 0, 2):
        cache.release(slot)
    assert start(cache, [9]).slot == 0


def test_forgotten_slot_is_empty_in_the_books_and_in_memory() -> None:
    memory = FakeMemory()
    cache = cache_of(memory=memory)
    start(cache, SYSTEM)
    cache.forget(0)
    cache.release(0)
    assert memory.tokens == {}
    assert start(cache, [*SYSTEM, 1]).num_cached_tokens == 0


def test_histories_give_way_when_a_sequence_needs_their_cells() -> None:
    cache = cache_of(num_slots=4, num_cells=100)
    for token in (1, 2, 3):
        finish(cache, [token] * 20, 20)
    assert cache.num_free_cells == 100
    start(cache, [4], 70)
    assert [len(cache.tokens(slot)) for slot in range(4)] == [0, 0, 20, 1]
    start(cache, [5], 30)
    assert sorted(len(cache.tokens(slot)) for slot in range(4)) == [0, 0, 1, 1]


def test_history_whose_cells_are_needed_is_still_copied_from() -> None:
    cache = cache_of(num_slots=2, num_cells=320)
    finish(cache, [*SYSTEM, *range(500, 700)], 300)
    assert start(cache, [*SYSTEM, 600], 150) == Allocation(1, 100)
    assert cache.tokens(0) == []


def test_recurrent_memory_goes_on_from_the_whole_of_a_history_only() -> None:
    cache = cache_of(memory=FakeMemory(is_recurrent=True))
    finish(cache, SYSTEM)
    assert finish(cache, [*SYSTEM, 500, 501]) == Allocation(0, 100)
    assert start(cache, [*SYSTEM, 500, 600]) == Allocation(1, 0)
    assert cache.tokens(0) == [*SYSTEM, 500, 501]


def test_sliding_window_is_cut_as_far_as_its_window_is_there() -> None:
    cache = cache_of(memory=FakeMemory(window=20, num_spare=10))
    finish(cache, SYSTEM)
    assert finish(cache, [*SYSTEM[:90], 500]) == Allocation(0, 90)
    assert finish(cache, [*SYSTEM[:70], 600]) == Allocation(1, 0)


def test_memory_that_cannot_copy_is_used_in_place() -> None:
    cache = cache_of(memory=FakeMemory(can_copy=False))
    start(cache, [*SYSTEM, 500])
    assert not cache.gains_by_copy([*SYSTEM, 600], 0, 100)
    assert start(cache, [*SYSTEM, 600]) == Allocation(1, 0)


@pytest.mark.parametrize("second", [[*SYSTEM[:90], 500], [*SYSTEM[:40], 500]])
def test_cut_or_copy_that_fails_leaves_an_empty_slot(second: list[int]) -> None:
    memory = FakeMemory(loses=lambda _num_changes: True)
    cache = cache_of(memory=memory)
    finish(cache, SYSTEM)
    allocation = start(cache, second)
    assert allocation.num_cached_tokens == 0
    assert memory.tokens[allocation.slot] == cache.tokens(allocation.slot) == second


def test_copy_must_bring_more_than_other_slots_have() -> None:
    cache = cache_of()
    source = start(cache, SYSTEM[:60]).slot
    assert cache.gains_by_copy(SYSTEM, source, MIN_COPY_TOKENS)
    assert not cache.gains_by_copy(SYSTEM, source, MIN_COPY_TOKENS - 1)
    start(cache, SYSTEM[:50])
    assert cache.gains_by_copy(SYSTEM, source, 50 + MIN_COPY_TOKENS)
    assert not cache.gains_by_copy(SYSTEM, source, 50 + MIN_COPY_TOKENS - 1)


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [([], [1], 0), ([1, 2], [1, 3], 1), ([1, 2], [1, 2, 3], 2), ([2], [1], 0)],
)
def test_common_prefix(one: list[int], other: list[int], length: int) -> None:
    assert common_prefix_length(one, other) == common_prefix_length(other, one) == length


@pytest.mark.parametrize("is_running", [True, False])
def test_prompt_of_another_owner_computes_all_of_it(is_running: bool) -> None:
    cache = cache_of()
    first = start(cache, SYSTEM)
    if not is_running:
        cache.release(first.slot)
    stranger = cache.allocate([*SYSTEM, 7], 1000, owner="stranger")
    assert stranger is not None
    assert stranger.num_cached_tokens == 0
    again = cache.allocate([*SYSTEM, 8], 200)
    assert again is not None
    assert again.num_cached_tokens == len(SYSTEM)


def test_idle_slots_of_other_owners_give_way() -> None:
    cache = cache_of(num_slots=1)
    finish(cache, SYSTEM)
    allocation = cache.allocate(SYSTEM, 1000, owner="stranger")
    assert allocation == Allocation(slot=0, num_cached_tokens=0)
    cache.release(0)
    again = cache.allocate(SYSTEM, 1000)
    assert again is not None
    assert again.num_cached_tokens == 0
