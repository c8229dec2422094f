"""Which workers are alive, by their keys in Redis."""

import pytest
import redis

from monitoring import workers
from monitoring.redis_client import client
from tests.conftest import Valkey, wait_until


def test_announced_worker_is_counted_until_it_stops(valkey: Valkey) -> None:
    assert workers.count(["gpu", "api"]) == {"gpu": 0, "api": 0}
    stops = [
        workers.announce("gpu@host", ["gpu"]),
        workers.announce("api@host", ["api", "default"]),
        workers.announce("api@other", ["api"]),
    ]
    expected = {"gpu": 1, "api": 2, "default": 1}
    wait_until(lambda: workers.count(["gpu", "api", "default"]) == expected)
    for stop in stops:
        stop.set()
    wait_until(lambda: set(workers.count(["gpu", "api", "default"]).values()) == {0})


def test_worker_says_more_with_each_sign_of_life(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_BEAT_SECONDS", 0.02)
    said: list[int] = []
    stop = workers.announce("gpu@host", ["gpu"], also=lambda: said.append(1))
    wait_until(lambda: len(said) > 2)
    stop.set()


def test_worker_that_is_silent_is_forgotten(valkey: Valkey) -> None:
    stop = workers.announce("gpu@host", ["gpu"])
    wait_until(lambda: workers.count(["gpu"]) == {"gpu": 1})
    assert 0 < client().ttl("worker:gpu:gpu@host") <= 15
    stop.set()
    wait_until(lambda: workers.count(["gpu"]) == {"gpu": 0})


def test_worker_starts_without_redis(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_BEAT_SECONDS", 0.02)
    valkey.stop()
    with pytest.raises(redis.RedisError):
        workers.count(["gpu"])
    stop = workers.announce("gpu@host", ["gpu"])
    valkey.start()
    wait_until(lambda: workers.count(["gpu"]) == {"gpu": 1})
    stop.set()
    wait_until(lambda: workers.count(["gpu"]) == {"gpu": 0})
