"""The feed of a web process: each event once, in order, to each that wants it, come what may."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from channels.layers import get_channel_layer

from monitoring.events import cursor, events, feed, frames, log, publisher, recent
from monitoring.events.cursor import EventCursor
from monitoring.events.events import SERVICE, EventType
from monitoring.events.feed import Feed, ReadStats
from monitoring.events.log import LoggedEvent
from monitoring.redis.client import client as redis_client
from tests.conftest import Valkey
from tests.live_server import TASK_ID, progress, tell, tell_all, told
from tests.monitoring.events.test_frames import parsed

TASKS = frozenset({"task.queued", "task.progress"})
LIMIT_SECONDS = 20.0


class Listener:
    """What a socket does with its cursor: it takes when woken, unless it is made to rest.

    One that `is_written` is written to at once while it has nothing to take, and does not rest.
    """

    def __init__(
        self, feed_: Feed, owner: str | None = "local", *, is_written: bool = False
    ) -> None:
        self.written: list[bytes] = []
        self.heard: list[dict[str, Any]] = []
        self.num_wakes = 0
        self._feed = feed_
        self._may_take = asyncio.Event()
        self._may_take.set()
        self._taking: asyncio.Task[None] | None = None
        self.cursor: EventCursor = feed_.join(
            owner, self._wake, self._write if is_written else lambda frames: False
        )

    def subscribe(self, since: int | None = None) -> None:
        self.cursor.subscribe(TASKS, since)

    def rest(self) -> None:
        """Be slow: take nothing for now."""
        self._may_take.clear()

    def go_on(self) -> None:
        self._may_take.set()

    def leave(self) -> None:
        self._feed.leave(self.cursor)
        if self._taking:
            self._taking.cancel()

    @property
    def last_seq(self) -> int:
        """What a client would reconnect with."""
        return max((message["seq"] for message in self.heard), default=0)

    def resyncs(self) -> list[int]:
        errors = [each["data"] for each in self.heard if each["type"] == "error"]
        assert {each["error"] for each in errors} <= {"resync"}
        return [each["details"]["since"] for each in errors]

    def _write(self, written: bytes) -> bool:
        can_write = self._taking is None and self._may_take.is_set()
        if can_write:
            self.written.append(written)
            self.heard += map(json.loads, parsed(written))
        return can_write

    def _wake(self) -> None:
        self.num_wakes += 1
        if self._taking is None:
            self._taking = asyncio.create_task(self._take())

    async def _take(self) -> None:
        await self._may_take.wait()
        while taken := await self.cursor.take():
            self.heard += map(json.loads, map(frames.text, taken))
            await self._may_take.wait()
        self._taking = None


def no_stats(event_type: EventType, owner: str | None) -> dict[str, Any]:
    return {}


def run(scenario: Callable[[Feed], Awaitable[None]], read_stats: ReadStats = no_stats) -> None:
    """Run a scenario with a feed that is live."""

    async def main() -> None:
        live = Feed(read_stats)
        first = live.join("nobody", lambda: None)
        await live.wait_until_live(LIMIT_SECONDS)
        await scenario(live)
        live.leave(first)

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, condition
        await asyncio.sleep(0.005)


async def now_told(numbers: range) -> None:
    await asyncio.to_thread(tell_all, numbers)


# --- Exactly once ---


@pytest.mark.parametrize("seed", range(12))
def test_each_event_is_heard_once_through_breaks_lags_and_losses(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Replay and live fit together: clients leave and come back, rest, and messages get lost."""
    monkeypatch.setattr(recent, "MAX_EVENTS", 10)
    monkeypatch.setattr(feed, "_LOG_PAGE", 7)
    monkeypatch.setattr(feed, "_NUM_READ_AHEAD", 5)
    monkeypatch.setattr(feed, "_POLL_SECONDS", 0.01)
    chance = random.Random(seed)  # noqa: S311 - no secrets
    lose_messages(monkeypatch, chance)

    async def scenario(live: Feed) -> None:
        listeners = [Listener(live, is_written=index > 1) for index in range(4)]
        pasts: list[list[dict[str, Any]]] = [[] for _ in listeners]
        for listener in listeners:
            listener.subscribe(live.last_seq)
        num_told = 0
        for _ in range(60):
            size = chance.choice((0, 1, 2, 30))
            telling = asyncio.create_task(now_told(range(num_told, num_told + size)))
            num_told += size
            index = chance.randrange(len(listeners))
            listener = listeners[index]
            match chance.randrange(4):
                case 0:
                    listener.rest()
                case 1:
                    listener.go_on()
                case 2:
                    pasts[index] += listener.heard
                    since = max((each["seq"] for each in pasts[index]), default=start)
                    listener.leave()
                    listeners[index] = Listener(live, is_written=index > 1)
                    listeners[index].subscribe(since)
            await telling
        for listener in listeners:
            listener.go_on()
        for past, listener in zip(pasts, listeners, strict=True):
            await until(lambda: len(told(past + listener.heard)) >= num_told)  # noqa: B023
            assert told(past + listener.heard) == list(range(num_told))
            assert not listener.resyncs()

    tell_all(range(0))
    start = log.last_seq()
    run(scenario)


def lose_messages(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
    """Every third message of the group does not come, or comes late."""
    take = Feed._take

    async def take_sometimes(self: Feed, messages: list[list[LoggedEvent]]) -> None:
        what = chance.randrange(6)
        if what == 1:
            asyncio.get_running_loop().call_later(
                0.02, lambda: asyncio.ensure_future(take(self, messages))
            )
        elif what > 1:
            await take(self, messages)

    monkeypatch.setattr(Feed, "_take", take_sometimes)


def test_messages_of_two_publishers_may_come_in_any_order(valkey: Valkey) -> None:
    async def scenario(live: Feed) -> None:
        listener = Listener(live)
        listener.subscribe()
        first = [numbered(number) for number in range(3)]
        second = [numbered(number) for number in range(3, 5)]
        await send(second)
        await send(first)
        await until(lambda: len(listener.heard) == 5)
        assert told(listener.heard) == [0, 1, 2, 3, 4]
        await now_told(range(5, 6))
        await until(lambda: told(listener.heard) == [0, 1, 2, 3, 4, 5])

    run(scenario)


def numbered(number: int) -> LoggedEvent:
    """An event that is logged, and that the group has not heard of yet."""
    event = LoggedEvent("task.queued", "now", {"task_id": TASK_ID, "attempt": number}, "local")
    return log.append([event], f"writer {number}", 1)[0]


async def send(events: list[LoggedEvent]) -> None:
    await publisher._send_to_group(events)


def test_transient_event_that_a_later_one_has_overtaken_is_dropped(valkey: Valkey) -> None:
    async def scenario(live: Feed) -> None:
        listener = Listener(live)
        listener.subscribe()
        first, second = numbered(1), numbered(2)
        await send([second])  # so the first is read from the log
        await until(lambda: told(listener.heard) == [1, 2])
        await send([transient("old"), first, transient("new")])
        await until(lambda: len(listener.heard) == 3)
        assert listener.heard[2]["data"]["partial_text"] == "new"

    run(scenario)


def transient(text: str) -> LoggedEvent:
    return LoggedEvent("task.progress", "now", {"task_id": TASK_ID, "partial_text": text}, "local")


def test_broken_message_does_not_end_the_feed(valkey: Valkey) -> None:
    async def scenario(live: Feed) -> None:
        listener = Listener(live)
        listener.subscribe()
        layer: Any = get_channel_layer()
        await layer.group_send(publisher.GROUP, {"type": "x", "events": [{"what": "?"}]})
        await now_told(range(3))
        await until(lambda: told(listener.heard) == [0, 1, 2])

    run(scenario)


# --- Lagging ---


def test_slow_socket_hears_from_the_log_what_is_no_longer_in_memory(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MAX_EVENTS", 10)

    async def scenario(live: Feed) -> None:
        slow, quick = Listener(live), Listener(live)
        slow.subscribe()
        quick.subscribe()
        slow.rest()
        await now_told(range(500))
        await until(lambda: len(quick.heard) == 500)
        progress(1)
        await until(lambda: len(quick.heard) == 501)
        assert slow.heard == []
        slow.go_on()
        await until(lambda: len(told(slow.heard)) == 500)
        assert told(slow.heard) == list(range(500))

    run(scenario)


def test_socket_too_slow_for_the_log_is_told_where_it_goes_on(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MAX_EVENTS", 10)

    async def scenario(live: Feed) -> None:
        slow, quick = Listener(live), Listener(live)
        slow.subscribe()
        quick.subscribe()
        slow.rest()
        await now_told(range(500))
        await until(lambda: len(quick.heard) == 500)
        redis_client().xtrim("events", minid=f"{quick.last_seq - 19}-0", approximate=False)
        slow.go_on()
        await until(lambda: len(slow.heard) == 21)
        assert slow.heard[0]["type"] == "error"
        assert slow.resyncs() == [quick.last_seq - 20]
        assert told(slow.heard) == list(range(480, 500))

    run(scenario)


def test_slow_socket_skips_the_oldest_transient_events(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "MAX_PENDING", 10)

    async def scenario(live: Feed) -> None:
        slow, quick = Listener(live), Listener(live)
        slow.cursor.subscribe(frozenset({"task.progress"}), None)
        quick.cursor.subscribe(frozenset({"task.progress"}), None)
        slow.rest()
        for number in range(50):
            progress(number)
            await until(lambda: len(quick.heard) == number + 1)  # noqa: B023
        slow.go_on()
        await until(lambda: len(slow.heard) == 10)
        assert [each["data"]["tokens_generated"] for each in slow.heard] == list(range(40, 50))

    run(scenario)


def test_slow_socket_gets_transient_events_in_their_place(valkey: Valkey) -> None:
    async def scenario(live: Feed) -> None:
        slow, quick = Listener(live), Listener(live)
        slow.subscribe()
        quick.subscribe()
        slow.rest()
        for number in range(3):
            tell(number)
            progress(number)
        await until(lambda: len(quick.heard) == 6)
        slow.go_on()
        await until(lambda: len(slow.heard) == 6)
        assert slow.heard == quick.heard
        assert [each["type"] for each in slow.heard] == ["task.queued", "task.progress"] * 3

    run(scenario)


def test_socket_that_subscribes_after_a_loss_gets_what_comes_then(valkey: Valkey) -> None:
    async def scenario(live: Feed) -> None:
        listener, other = Listener(live), Listener(live)
        other.subscribe()
        await now_told(range(3))
        await until(lambda: len(other.heard) == 3)
        redis_client().flushall()
        await until(other.resyncs)
        listener.subscribe()
        await now_told(range(3, 5))
        await until(lambda: told(listener.heard) == [3, 4])
        assert not listener.resyncs()

    run(scenario)


def test_memory_is_bounded_by_bytes_as_well(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MAX_BYTES", 10_000)

    async def scenario(live: Feed) -> None:
        await now_told(range(200))
        await until(lambda: live.last_seq == log.last_seq())
        kept = live.recent.after(live.recent.start_seq, 200)
        assert kept is not None
        assert 20 < len(kept) < 100
        assert sum(len(event.frame) for event in kept) <= 10_000

    run(scenario)


def test_sockets_that_want_the_same_are_written_the_same_bytes(valkey: Valkey) -> None:
    async def scenario(live: Feed) -> None:
        one, same, filtered = (Listener(live, is_written=True) for _ in range(3))
        stranger, other = (Listener(live, name, is_written=True) for name in ("stranger", "bob"))
        for listener in (one, same, filtered, stranger, other):
            listener.subscribe()
        filtered.cursor.task_id = f"task_{'f' * 32}"
        for number in range(50):
            tell(number)
            tell(number, owner="stranger")
            progress(number)
        await until(lambda: len(one.heard) == 100 and len(stranger.heard) == 50)
        assert told(one.heard) == told(stranger.heard) == list(range(50))
        assert all(first is second for first, second in zip(one.written, same.written, strict=True))
        assert (filtered.written, other.written) == ([], [])
        assert not any(each.num_wakes for each in (one, same, filtered, stranger, other))

    run(scenario)


def test_large_events_are_written_in_pieces(valkey: Valkey) -> None:
    async def scenario(live: Feed) -> None:
        listener = Listener(live, is_written=True)
        listener.subscribe()
        for number in range(60):
            tell(number, model="m" * 10_000)
        await until(lambda: len(listener.heard) == 60)
        assert told(listener.heard) == list(range(60))
        assert all(len(each) <= frames.MAX_BYTES for each in listener.written)

    run(scenario)


def test_only_sockets_that_want_an_event_are_woken(valkey: Valkey) -> None:
    async def scenario(live: Feed) -> None:
        idle, filtered, stranger = Listener(live), Listener(live), Listener(live, "stranger")
        wants = Listener(live)
        idle.cursor.subscribe(frozenset({"model.loaded", "log"}), None)
        for listener in (filtered, stranger, wants):
            listener.subscribe()
        filtered.cursor.task_id = f"task_{'f' * 32}"
        await now_told(range(20))
        await until(lambda: len(wants.heard) == 20)
        assert (idle.num_wakes, filtered.num_wakes, stranger.num_wakes) == (0, 0, 0)

    run(scenario)


# --- Life of the feed ---


def test_feed_stops_with_its_last_cursor_and_starts_anew(valkey: Valkey) -> None:
    async def main() -> None:
        live = Feed(no_stats)
        for number in range(3):
            cursor = live.join("local", lambda: None)
            await live.wait_until_live(LIMIT_SECONDS)
            live.leave(cursor)
            await now_told(range(number, number + 1))  # while nobody listens
            await until(lambda: not live._stopping)
        assert redis_client().pubsub_channels("*") == []
        listener = Listener(live)
        await live.wait_until_live(LIMIT_SECONDS)
        listener.subscribe(0)
        await until(lambda: told(listener.heard) == [0, 1, 2])
        listener.leave()

    asyncio.run(main())


def test_latest_events_are_in_memory_from_the_start(valkey: Valkey) -> None:
    tell_all(range(50))

    async def scenario(live: Feed) -> None:
        assert live.recent.last_seq - live.recent.start_seq == 50
        assert live.last_seq == log.last_seq()

    run(scenario)


def test_feed_begins_when_redis_comes(valkey: Valkey) -> None:
    tell_all(range(3))
    since = log.last_seq() - 1
    valkey.stop()

    async def main() -> None:
        live = Feed(no_stats)
        replayed, current, gone = Listener(live), Listener(live), Listener(live)
        await live.wait_until_live(0.1)
        assert live.last_seq is None
        replayed.subscribe(since)
        current.subscribe()
        replayed.cursor.subscribe(frozenset({"model.loaded"}), None)
        replayed.cursor.unsubscribe(frozenset({"model.loaded"}))
        gone.subscribe(since)
        gone.leave()
        await asyncio.to_thread(valkey.start)
        await live.wait_until_live(LIMIT_SECONDS)
        loaded = events.ModelLoaded(model="m", worker="w", load_ms=1)
        events.publish(EventType.MODEL_LOADED, loaded, None)
        await now_told(range(3, 5))
        await until(lambda: told(replayed.heard) == [2, 3, 4])
        assert {each["type"] for each in replayed.heard} == {"task.queued"}
        await until(lambda: told(current.heard) == [3, 4])
        assert gone.heard == []
        replayed.leave()
        current.leave()

    asyncio.run(main())


def test_redis_killed_under_open_sockets_costs_no_event_and_one_line(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(live: Feed) -> None:
        listener, late = Listener(live), Listener(live)
        listener.subscribe()
        await now_told(range(3))
        await until(lambda: told(listener.heard) == [0, 1, 2])
        valkey.stop()
        await now_told(range(3, 6))
        await until(lambda: "Sockets get no new events" in caplog.text)
        late.subscribe(listener.heard[0]["seq"])  # from memory
        await until(lambda: told(late.heard) == [1, 2])
        await asyncio.to_thread(valkey.start)
        await now_told(range(6, 8))
        await until(lambda: told(listener.heard) == list(range(8)))
        await until(lambda: told(late.heard) == list(range(1, 8)))
        assert not listener.resyncs()

    run(scenario)
    assert caplog.text.count("Sockets get no new events") == 1


@pytest.mark.parametrize("is_empty", [True, False])
def test_redis_that_lost_events_makes_clients_read_anew(valkey: Valkey, is_empty: bool) -> None:
    async def scenario(live: Feed) -> None:
        listener = Listener(live)
        listener.subscribe()
        await now_told(range(10))
        await until(lambda: len(listener.heard) == 10)
        if is_empty:
            redis_client().flushall()
        else:
            redis_client().set("events:seq", listener.last_seq - 5)
            redis_client().xtrim("events", maxlen=0, approximate=False)
        await until(listener.resyncs)
        await now_told(range(10, 12))
        await until(lambda: told(listener.heard) == list(range(12)))
        [since] = listener.resyncs()
        assert listener.heard[10]["type"] == "error"
        assert listener.heard[11]["seq"] == since + 1

    run(scenario)


def test_statistics_are_read_only_while_somebody_wants_them(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_STATS_SECONDS", 0.01)
    reads: list[str | None] = []

    def read(event_type: EventType, owner: str | None) -> dict[str, Any]:
        reads.append(owner)
        if len(reads) == 2:
            raise RuntimeError("the statistics cannot be read once")
        return {"number": len(reads)}

    async def scenario(live: Feed) -> None:
        listener, stranger = Listener(live), Listener(live, "stranger")
        listener.subscribe()
        await now_told(range(3))
        await until(lambda: len(listener.heard) == 3)
        assert reads == []
        listener.cursor.subscribe(frozenset({"queue_stats"}), None)
        stranger.cursor.subscribe(frozenset({"queue_stats"}), None)
        await until(lambda: len(listener.heard) > 5 and len(stranger.heard) > 2)
        assert set(reads) == {"local", "stranger"}
        numbers = [each["data"]["number"] for each in listener.heard[3:]]
        assert not set(numbers) & {each["data"]["number"] for each in stranger.heard}
        live.leave(stranger.cursor)
        listener.cursor.unsubscribe(frozenset({"queue_stats"}))
        await until(lambda: live.has_subscription._waiters)

    run(scenario, read)


def test_owner_and_task_decide_what_is_heard(valkey: Valkey) -> None:
    async def scenario(live: Feed) -> None:
        listener, stranger = Listener(live), Listener(live, "stranger")
        listener.subscribe(0)
        stranger.subscribe(0)
        tell(1, owner="stranger")
        tell(2, owner=None)
        tell(3)
        await until(lambda: told(listener.heard) == [2, 3])
        await until(lambda: told(stranger.heard) == [1, 2])
        progress(1, owner="stranger")
        await until(lambda: len(stranger.heard) == 3)
        assert len(listener.heard) == 2

    run(scenario)


def test_cursor_of_all_owners_hears_everything_and_the_statistics_of_all(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_STATS_SECONDS", 0.01)

    def read(event_type: EventType, owner: str | None) -> dict[str, Any]:
        return {"owner": owner}

    async def scenario(live: Feed) -> None:
        everyone, alice = Listener(live, None), Listener(live, "alice")
        for listener in (everyone, alice):
            listener.subscribe(0)
        for number, owner in enumerate(("alice", "bob", SERVICE, None)):
            tell(number, owner=owner)
        await until(lambda: told(everyone.heard) == [0, 1, 2, 3])
        await until(lambda: told(alice.heard) == [0, 3])
        for listener in (everyone, alice):
            listener.cursor.subscribe(frozenset({"queue_stats"}), None)
        await until(lambda: len(everyone.heard) > 9 and len(alice.heard) > 7)
        assert {each["data"]["owner"] for each in everyone.heard[4:]} == {None}
        assert {each["data"]["owner"] for each in alice.heard[2:]} == {"alice"}

    run(scenario, read)
