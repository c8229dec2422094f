"""Answers that many ask for: read once, shown to all."""

import threading
from types import SimpleNamespace

import pytest

from monitoring.redis import cache
from monitoring.redis.cache import cached
from monitoring.redis.client import client
from tests.conftest import Valkey, wait_until


class Reading:
    """Counts how often it was read."""

    def __init__(self) -> None:
        self.num_reads = 0

    def __call__(self) -> list[int]:
        self.num_reads += 1
        return [self.num_reads]


def test_second_who_asks_gets_what_the_first_got(valkey: Valkey) -> None:
    reading = Reading()
    assert cached("numbers", 60, reading) == cached("numbers", 60, reading) == [1]
    assert cached("others", 60, reading) == [2]


def test_old_answer_is_read_anew(valkey: Valkey) -> None:
    reading = Reading()
    cached("numbers", 0.05, reading)
    wait_until(lambda: cached("numbers", 0.05, reading) == [2])


def test_threads_wait_for_the_one_that_reads(valkey: Valkey) -> None:
    reading, may_end, answers = Reading(), threading.Event(), list[list[int]]()

    def read_slowly() -> list[int]:
        may_end.wait(20)
        return reading()

    threads = [
        threading.Thread(target=lambda: answers.append(cached("slow", 60, read_slowly)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    may_end.set()
    for thread in threads:
        thread.join()
    assert answers == [[1]] * 4


def test_failed_reading_is_tried_again(valkey: Valkey) -> None:
    def fail() -> list[int]:
        raise ValueError("no reading")

    with pytest.raises(ValueError, match="no reading"):
        cached("numbers", 60, fail)
    assert cached("numbers", 60, Reading()) == [1]


def test_without_redis_each_reads(valkey: Valkey) -> None:
    reading = Reading()
    valkey.stop()
    assert [cached("numbers", 60, reading) for _ in range(2)] == [[1], [2]]


def test_what_takes_long_is_kept_longer(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 130.0])
    monkeypatch.setattr(cache, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    cached("slow", 10, Reading())
    assert 200 < client().ttl("cache:slow") <= 300
