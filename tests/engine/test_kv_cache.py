"""Slots and cells are handed out once and come back."""

import pytest

from inference.engine.kv_cache import KVCache


def test_slots_are_handed_out_until_none_is_left() -> None:
    cache = KVCache(num_slots=2, num_cells=100)
    slots = [cache.allocate([1], 10), cache.allocate([1], 10)]
    assert [allocation.slot for allocation in slots if allocation] == [0, 1]
    assert cache.allocate([1], 10) is None
    cache.free(0)
    assert cache.num_free_slots == 1
    again = cache.allocate([1], 10)
    assert again is not None
    assert (again.slot, again.num_cached_tokens) == (0, 0)


def test_cells_are_reserved_for_the_whole_life_of_a_sequence() -> None:
    cache = KVCache(num_slots=4, num_cells=100)
    assert cache.allocate([1], 60) is not None
    assert cache.allocate([1], 41) is None
    assert cache.allocate([1], 40) is not None
    cache.free(0)
    assert cache.num_free_cells == 60


def test_slot_knows_its_tokens() -> None:
    cache = KVCache(num_slots=1, num_cells=3)
    cache.allocate([1, 2], 3)
    cache.append(0, [1, 2])
    cache.append(0, [7])
    assert cache.tokens(0) == [1, 2, 7]
    with pytest.raises(AssertionError):
        cache.append(0, [8])
