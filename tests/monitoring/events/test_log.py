"""The log of events in Redis."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from monitoring.events import log
from monitoring.events.log import Excerpt, LoggedEvent
from monitoring.redis.client import async_client, client
from tests.conftest import Valkey

EVENT = LoggedEvent("task.queued", "2026-01-31T12:00:00.000Z", {"task_id": "ünï"}, "local")


class Writer:
    """Appends events whose data are their numbers."""

    def __init__(self, name: str = "writer") -> None:
        self._name = name
        self._num_batches = 0
        self._num_events = 0

    def write(self, num_events: int) -> list[LoggedEvent]:
        self._num_batches += 1
        return log.append(self._next(num_events), self._name, self._num_batches)

    def _next(self, num_events: int) -> list[LoggedEvent]:
        first, self._num_events = self._num_events, self._num_events + num_events
        return [replace(EVENT, data={"n": n}) for n in range(first, self._num_events)]


def seqs(events: list[LoggedEvent]) -> list[int]:
    return [event.seq or 0 for event in events]


def test_event_comes_back_as_it_was(valkey: Valkey) -> None:
    [event] = log.append([EVENT], "writer", 1)
    assert log.read(0).events == [event] == [replace(EVENT, seq=event.seq)]


def test_numbers_have_no_gaps_over_all_writers(valkey: Valkey) -> None:
    one, two = Writer("one"), Writer("two")
    written = one.write(3) + two.write(1) + one.write(2)
    first = written[0].seq or 0
    assert seqs(written) == list(range(first, first + 6))
    assert log.read(0).events == written
    assert log.last_seq() == first + 5


def test_repeated_batch_is_appended_once(valkey: Valkey) -> None:
    events = [EVENT, EVENT]
    once = log.append(events, "writer", 1)
    assert log.append(events, "writer", 1) == once
    assert log.read(0).events == once
    assert seqs(log.append(events, "writer", 2))[0] == seqs(once)[-1] + 1
    assert seqs(log.append(events, "another", 2))[0] == seqs(once)[-1] + 3


def test_what_is_told_once_is_appended_once_whoever_tells_it(valkey: Valkey) -> None:
    keys = ["a", "", "a", "b"]
    first = log.append([EVENT] * 4, "one", 1, keys)
    assert [event.seq is None for event in first] == [False, False, True, False]
    assert log.append([EVENT] * 4, "one", 1, keys) == first  # its answer was lost
    second = log.append([EVENT] * 4, "two", 1, ["b", "c", "", "a"])
    assert [event.seq is None for event in second] == [True, False, False, True]
    appended = [event for event in first + second if event.seq]
    assert log.read(0).events == appended
    assert seqs(appended) == list(range(seqs(appended)[0], seqs(appended)[0] + 5))
    assert log.untold(["a", "d", "c"]) == ["d"]


def test_what_was_told_long_ago_is_forgotten(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "TOLD_SECONDS", 0)
    log.append([EVENT], "one", 1, ["a"])
    assert log.untold(["a"]) == ["a"]


@pytest.mark.parametrize("seed", range(5))
def test_pages_that_follow_each_other_tell_all_once(valkey: Valkey, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secrets
    written = Writer().write(chance.randint(1, 200))
    start = chance.randint(0, len(written))
    after = seqs(written)[0] - 1 + start
    pages: list[Excerpt] = []
    while not pages or pages[-1].has_more:
        pages.append(log.read(after, chance.randint(1, 60)))
        after = pages[-1].end_seq
    assert [event for page in pages for event in page.events] == written[start:]
    assert not any(page.has_gap for page in pages)
    assert after == log.last_seq()


def test_page_that_ends_with_the_log_has_no_next(valkey: Valkey) -> None:
    Writer().write(10)
    assert not log.read(0, 10).has_more
    assert log.read(0, 9).has_more


def test_empty_log_has_neither_events_nor_gaps(valkey: Valkey) -> None:
    assert log.read(0) == Excerpt([], has_gap=False, end_seq=0, last_seq=0)
    seq = log.last_seq()
    assert seq > 0
    assert log.last_seq() == seq
    assert log.read(0) == log.read(seq) == Excerpt([], False, seq, seq)


def test_asynchronous_reader_reads_the_same(valkey: Valkey) -> None:
    written = Writer().write(10)

    async def read() -> Excerpt:
        async with async_client() as redis_client:
            return await log.read_async(redis_client, seqs(written)[2], 5)

    assert asyncio.run(read()) == log.read(seqs(written)[2], 5)


def test_oldest_events_go_and_who_asks_for_them_is_told(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MAX_EVENTS", 100)
    writer = Writer()
    first = seqs(writer.write(1))[0]
    for _ in range(10):
        writer.write(50)
    kept = log.read(0).events
    assert 100 <= len(kept) <= 250  # Redis drops them by the hundred
    assert kept[-1].seq == first + 500
    assert log.read(first).has_gap
    oldest = seqs(kept)[0]
    assert not log.read(oldest - 1).has_gap
    assert log.read(oldest - 2).has_gap
    assert not log.read(0).has_gap


def test_log_is_kept_for_a_day_after_the_last_event(valkey: Valkey) -> None:
    Writer().write(1)
    assert 0 < client().ttl("events") <= log.KEPT_SECONDS
    assert client().ttl("events:seq") == -1  # numbers go on after that


def test_expired_log_is_a_gap(valkey: Valkey) -> None:
    written = Writer().write(3)
    client().delete("events")
    excerpt = log.read(seqs(written)[0])
    assert (excerpt.events, excerpt.has_gap, excerpt.end_seq) == ([], True, seqs(written)[2])
    assert not log.read(seqs(written)[2]).has_gap


def test_number_from_the_future_is_a_gap(valkey: Valkey) -> None:
    last = seqs(Writer().write(3))[-1]
    excerpt = log.read(last + 1)
    assert (excerpt.events, excerpt.has_gap, excerpt.end_seq) == ([], True, last)


@pytest.mark.parametrize("num_lost", [1, 5, 10])
def test_number_is_never_given_twice_when_redis_comes_back_with_less(
    valkey: Valkey, num_lost: int
) -> None:
    writer = Writer()
    before = writer.write(10)
    lose_last(num_lost, before)
    after = writer.write(2)
    assert seqs(after)[0] > seqs(before)[-1]
    for known in before:
        assert log.read(known.seq or 0).has_gap
    assert log.read(seqs(after)[0]).events == after[1:]


def lose_last(num_lost: int, events: list[LoggedEvent]) -> None:
    """What a Redis has that was saved some events ago."""
    for seq in seqs(events)[-num_lost:]:
        client().xdel("events", f"{seq}-0")
    client().set("events:seq", seqs(events)[-1] - num_lost)


def test_number_is_never_given_twice_when_redis_comes_back_empty(valkey: Valkey) -> None:
    writer = Writer()
    before: list[Any] = writer.write(10)
    client().flushall()
    after = writer.write(2)
    assert seqs(after)[0] > seqs(before)[-1]
    assert log.read(seqs(before)[-1]) == Excerpt(after, True, *[seqs(after)[-1]] * 2)
