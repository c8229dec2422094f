"""Which workers are alive, by what they show in Redis."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import redis

from monitoring.hardware import workers
from monitoring.hardware.workers import Worker
from monitoring.redis import heartbeats
from monitoring.redis.client import client
from tests.conftest import Valkey, wait_until

# A worker of another process, which says once that it lives.
_ANNOUNCE_AND_STAY = """
import django
django.setup()
from monitoring.hardware import workers
workers.announce("gpu@host", ["gpu"])
input()
"""


@contextmanager
def announced(name: str, *queues: str) -> Iterator[None]:
    stop = workers.announce(name, list(queues))
    try:
        wait_until(lambda: name in names(queues[0]))
        yield
    finally:
        stop.set()


def post_note(name: str, host: str, *queues: str, seconds: float = 60) -> None:
    note = Worker(name, 1, host, list(queues), "2026-01-31T12:00:00.000Z")
    heartbeats.beat("workers", name, json.dumps(asdict(note)), seconds)


def names(queue: str) -> list[str]:
    return sorted(worker.worker for worker in workers.alive().get(queue, []))


def test_announced_worker_is_alive_until_it_stops(valkey: Valkey) -> None:
    assert workers.count(["gpu", "api"]) == {"gpu": 0, "api": 0}
    with (
        announced("gpu@host", "gpu"),
        announced("api@host", "api", "default"),
        announced("api@other", "api"),
    ):
        assert workers.count(["gpu", "api", "default"]) == {"gpu": 1, "api": 2, "default": 1}
        assert names("api") == ["api@host", "api@other"]
    wait_until(lambda: workers.alive() == {})


def test_worker_tells_its_process(valkey: Valkey) -> None:
    with announced("gpu@host", "gpu"):
        [worker] = workers.alive()["gpu"]
    assert (worker.pid, worker.host, worker.queues) == (os.getpid(), socket.gethostname(), ["gpu"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", worker.started_at)


def test_silent_worker_is_forgotten_and_others_are_not(valkey: Valkey) -> None:
    with announced("api@host", "api"):
        post_note("silent", "elsewhere", "gpu", seconds=0.3)
        assert names("gpu") == ["silent"]
        wait_until(lambda: names("gpu") == [])
        assert names("api") == ["api@host"]
        assert set(heartbeats.read("workers")) == {f"api@host:{os.getpid()}"}
        assert not client().hexists("workers", "silent")


def test_worker_is_silent_for_six_seconds_at_most(valkey: Valkey) -> None:
    with announced("gpu@host", "gpu"):
        assert 0 < client().pttl("workers") <= 6000


def test_host_is_silent_when_none_of_its_workers_of_the_queue_is_heard_of(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = ["both", "api-only", "gone", socket.gethostname()]
    post_note("both", "both", "gpu", "api")
    post_note("api", "api-only", "api")
    assert workers.silent_hosts(hosts, "gpu") == set()  # others may be about to tell
    monkeypatch.setattr(workers, "_ALIVE_SECONDS", 0.05)
    wait_until(lambda: heartbeats.age("workers") > 0.05)
    assert workers.silent_hosts(hosts, "gpu") == {"api-only", "gone"}
    assert workers.silent_hosts(hosts, "api") == {"gone"}
    client().flushall()
    post_note("both", "both", "gpu", "api")
    assert workers.silent_hosts(hosts, "api") == set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dead_process_does_not_count_although_its_note_is_there(
    valkey: Valkey, number: signal.Signals
) -> None:
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "sopllm.settings"}
    process = subprocess.Popen(
        [sys.executable, "-c", _ANNOUNCE_AND_STAY], stdin=subprocess.PIPE, env=environment
    )
    try:
        wait_until(lambda: names("gpu") == ["gpu@host"])
        process.send_signal(number)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: nobody has waited
        assert workers.alive() == {}
        assert set(heartbeats.read("workers")) == {f"gpu@host:{process.pid}"}
    finally:
        process.kill()
        process.wait()


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


def test_stopping_without_redis_ends_the_heartbeat(valkey: Valkey) -> None:
    with announced("gpu@host", "gpu"):
        valkey.stop()
    wait_until(lambda: "heartbeat" not in [thread.name for thread in threading.enumerate()])


def test_reading_takes_one_round_trip_however_much_is_in_redis(valkey: Valkey) -> None:
    client().mset({f"worker:{index}": "x" for index in range(2000)})
    with announced("gpu@host", "gpu"):
        workers.alive()  # the script is known from here on
        before = client().info("commandstats")
        workers.alive()
        after = client().info("commandstats")
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    assert calls["cmdstat_evalsha"] <= 2  # a heartbeat may come in between
    assert not calls.get("cmdstat_scan")
    assert not calls.get("cmdstat_keys")
