"""What is put into the outbox goes out in order and in batches, whatever fails or blocks."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable

import pytest
import redis

from inference import dispatch
from monitoring.events import events
from monitoring.events.events import EventType
from monitoring.logs.service_log import LogHandler
from monitoring.metrics import counters
from monitoring.redis import outbox
from monitoring.redis.outbox import Batch, Outbox, Sink
from tests.conftest import Valkey, wait_until


class Receiver:
    """Takes batches; raises each of `errors` once before."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.batches: list[Batch[int]] = []
        self.tried: list[Batch[int]] = []

    def send(self, batch: Batch[int]) -> None:
        self.tried.append(batch)
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append(batch)

    @property
    def items(self) -> list[int]:
        return [item for batch in self.batches for item in batch.items]


def sink(
    send: Callable[[Batch[int]], None], gather_seconds: float = 0.0, **fields: object
) -> Sink[int]:
    return Sink("Numbers", send, gather_seconds, **fields)  # type: ignore[arg-type]


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> Outbox:
    """An outbox of its own, which tries again soon."""
    monkeypatch.setattr(outbox, "_RETRY_SECONDS", 0.02)
    return Outbox()


AWAY = redis.ConnectionError("Redis is away")


def test_items_go_out_in_order_in_bounded_batches(tested: Outbox) -> None:
    receiver = Receiver()
    numbers = sink(receiver.send, 0.05, max_batch=30)
    for number in range(100):
        tested.put(numbers, number)
    assert tested.flush(20)
    assert receiver.items == list(range(100))
    assert [len(batch.items) for batch in receiver.batches] == [30, 30, 30, 10]
    assert [batch.number for batch in receiver.batches] == [1, 2, 3, 4]


def test_items_wait_for_others_to_go_out_with_them(tested: Outbox) -> None:
    receiver = Receiver()
    numbers = sink(receiver.send, 0.2)
    for number in range(3):
        tested.put(numbers, number)
    wait_until(lambda: receiver.batches)
    assert receiver.items == [0, 1, 2]
    assert len(receiver.batches) == 1


def test_failed_batch_is_sent_again_as_it_was(tested: Outbox) -> None:
    receiver = Receiver(AWAY, TimeoutError())
    numbers = sink(receiver.send, is_kept=lambda _: True)
    tested.put(numbers, 1)
    wait_until(lambda: receiver.tried)
    tested.put(numbers, 2)
    wait_until(lambda: receiver.items == [1, 2])
    assert receiver.tried[:3] == [Batch([1], 1)] * 3


def test_what_need_not_be_kept_is_dropped(tested: Outbox) -> None:
    receiver = Receiver(AWAY)
    numbers = sink(receiver.send, 0.05, max_batch=4, is_kept=lambda number: number % 2 == 0)
    for number in range(8):
        tested.put(numbers, number)
    wait_until(lambda: len(receiver.items) == 4)
    assert receiver.batches == [Batch([0, 2], 1), Batch([4, 6], 2)]


def test_only_the_latest_wait(tested: Outbox) -> None:
    receiver = Receiver()
    numbers = sink(receiver.send, 60.0, max_waiting=10)
    for number in range(100):
        tested.put(numbers, number)
    assert tested.flush(20)
    assert receiver.items == list(range(90, 100))


def test_only_so_many_bytes_wait(tested: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING_BYTES", 60)
    receiver = Receiver(AWAY)
    numbers = sink(receiver.send, 60.0, size=lambda number: number, is_kept=lambda _: True)
    for number in (50, 10, 20, 30, 100, 5, 15):
        tested.put(numbers, number)
    tested.flush(20)  # fails
    wait_until(lambda: receiver.items == [5, 15])
    tested.put(numbers, 40)
    assert tested.flush(20)
    assert receiver.items == [5, 15, 40]


NUM_PUT = 10_600  # more than may wait, and the batch that is under way


def publish_event(number: int) -> None:
    data = events.ModelUnloaded(model="m", worker=str(number))
    events.publish(EventType.MODEL_UNLOADED, data, None)


def log_line(number: int) -> None:
    record = logging.LogRecord("tested", logging.INFO, "", 0, "line %d", (number,), None)
    LogHandler().emit(record)


@pytest.mark.parametrize(
    ("name", "put"),
    [
        ("Events", publish_event),
        ("Log lines", log_line),
        ("Counters", lambda number: counters.count({("m", "num_requests"): 1.0})),
        ("Messages to workers", lambda number: dispatch.enqueue_soon([dispatch.DOWNLOAD])),
    ],
)
def test_what_waits_for_a_redis_that_hangs_is_bounded(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, name: str, put: Callable[[int], None]
) -> None:
    outbox._outbox.forget()
    with valkey.hanging():
        for number in range(NUM_PUT):
            put(number)  # one that waited would do so until the test times out
        wait_until(lambda: num_dropped(caplog.text, name))
        assert num_dropped(caplog.text, name) >= NUM_PUT - 10_000 - 500
    assert outbox.flush(20)


def num_dropped(text: str, name: str) -> int:
    found = re.findall(rf"{name} are late, \d+ kept back and (\d+) dropped", text)
    return sum(map(int, found))


def test_waiting_items_are_merged(tested: Outbox) -> None:
    receiver = Receiver(AWAY, AWAY)
    numbers = sink(
        receiver.send,
        max_waiting=3,
        is_kept=lambda _: True,
        merge=lambda items: [sum(items)] if items else [],
    )
    for number in range(1, 20):
        tested.put(numbers, number)
        tested.flush(20)
    wait_until(lambda: sum(receiver.items) == sum(range(1, 20)))


def test_sink_that_fails_or_blocks_loses_none_of_the_others_items(tested: Outbox) -> None:
    receiver, may_end = Receiver(), threading.Event()

    def fail(batch: Batch[int]) -> None:
        may_end.wait(20)
        raise ValueError("cannot be sent, ever")

    tested.put(sink(fail), 0)
    numbers = sink(receiver.send)
    for number in range(1000):
        tested.put(numbers, number)
    may_end.set()
    assert tested.flush(20)
    assert receiver.items == list(range(1000))


def test_batch_that_cannot_be_sent_ever_is_dropped(
    tested: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver(ValueError("no number"))
    numbers = sink(receiver.send, is_kept=lambda _: True)
    tested.put(numbers, 1)
    assert tested.flush(20)
    tested.put(numbers, 2)
    assert tested.flush(20)
    assert receiver.items == [2]
    assert "Numbers: a batch of 1 was lost" in caplog.text


def test_what_is_dropped_is_told_now_and_then(
    tested: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(*[AWAY] * 5)
    numbers = sink(receiver.send)
    for number in range(5):
        tested.put(numbers, number)
        tested.flush(20)
    assert [record.getMessage() for record in caplog.records] == [
        "Numbers are late, 0 kept back and 1 dropped: Redis is away"
    ]
    assert caplog.records[0].levelno == logging.WARNING
    monkeypatch.setattr(outbox, "_WARN_AGAIN_SECONDS", 0)
    tested.put(numbers, 5)
    tested.flush(20)
    assert "0 kept back and 4 dropped" in caplog.records[-1].getMessage()


def test_flush_covers_what_one_sink_puts_into_another(tested: Outbox) -> None:
    receiver = Receiver()
    events = sink(receiver.send, 60.0)

    def tell(batch: Batch[int]) -> None:
        for item in batch.items:
            tested.put(events, item)

    tested.put(events, 0)
    tested.put(sink(tell, 60.0), 1)
    assert tested.flush(20)
    assert sorted(receiver.items) == [0, 1]


def test_flush_does_not_wait_longer_than_it_may(tested: Outbox) -> None:
    may_end = threading.Event()
    tested.put(sink(lambda _: [may_end.wait(20)].clear()), 1)
    started = time.monotonic()
    assert not tested.flush(0.05)
    assert time.monotonic() - started < 10
    may_end.set()
    assert tested.flush(20)


def test_forked_child_sends_its_own_items_alone() -> None:
    receiver = Receiver()
    numbers = sink(receiver.send, 60.0)
    outbox.put(numbers, 1)
    pid = os.fork()
    if pid == 0:
        outbox.put(numbers, 2)
        os._exit(0 if outbox.flush(20) and receiver.items == [2] else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert outbox.flush(20)
    assert receiver.items == [1]
