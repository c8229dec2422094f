"""The reference: a Celery app of one task that does nothing, on a Valkey of its own.

What it takes is what Celery itself takes on this machine; BARE_VALKEY names the socket.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import median

import redis
from celery import Celery

from benchmarks.running_service import ROOT, wait_for
from sopllm.processes import valkey_executable
from sopllm.supervisor import child_set_up

NOOP = "bare.noop"
DONE = "done"

app = Celery("bare", broker=f"redis+socket://{os.environ.get('BARE_VALKEY', '')}")
app.conf.update(task_ignore_result=True, worker_send_task_events=False)


@app.task(name=NOOP, queue="bare")
def noop() -> None:
    """Tell that the message has arrived."""
    _valkey(os.environ["BARE_VALKEY"]).rpush(DONE, 1)


@cache
def _valkey(path: str) -> "redis.Redis":
    return redis.Redis(unix_socket_path=path)


def measure(num_round_trips: int, num_messages: int) -> dict[str, float]:
    """Round trip in ms, and messages published and drained a second; prefork, one process."""
    folder = Path(tempfile.mkdtemp(prefix="bare-", dir="/tmp"))
    os.environ["BARE_VALKEY"] = str(folder / "valkey.sock")
    app.conf.update(broker_url=f"redis+socket://{os.environ['BARE_VALKEY']}")
    try:
        with _running_valkey(folder):
            publish_rate = _publish_rate(num_messages)
            with _running_worker():
                return {
                    "round_trip_ms_p50": round(_round_trip_ms(num_round_trips), 2),
                    "publish_per_second": round(publish_rate, 1),
                    "drain_per_second": round(_drain_rate(num_messages), 1),
                }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish_rate(num_messages: int) -> float:
    for _ in range(20):
        noop.delay()
    started = time.perf_counter()
    for _ in range(num_messages):
        noop.delay()
    seconds = time.perf_counter() - started
    _client().flushall()
    return num_messages / seconds


def _round_trip_ms(num_round_trips: int) -> float:
    times = []
    for _ in range(num_round_trips):
        started = time.perf_counter()
        noop.delay()
        _client().blpop([DONE])
        times.append((time.perf_counter() - started) * 1000)
    return median(times)


def _drain_rate(num_messages: int) -> float:
    """From the first message published to the last one done."""
    started = time.perf_counter()
    for _ in range(num_messages):
        noop.delay()
    for _ in range(num_messages):
        _client().blpop([DONE])
    return num_messages / (time.perf_counter() - started)


def _client() -> "redis.Redis":
    return _valkey(os.environ["BARE_VALKEY"])


@contextmanager
def _running_valkey(folder: Path) -> Iterator[None]:
    options = {"port": "0", "unixsocket": os.environ["BARE_VALKEY"], "dir": str(folder)}
    options |= {"appendonly": "yes", "appendfsync": "everysec", "save": ""}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    with _running([str(valkey_executable()), *arguments]):
        wait_for(_answers)
        yield


@contextmanager
def _running_worker() -> Iterator[None]:
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.bare_celery", "worker"]
    options = ["--queues=bare", "--pool=prefork", "--concurrency=1", "--loglevel=WARNING"]
    with _running([*command, *options, "--without-mingle", "--without-gossip"]):
        noop.delay()  # the first one warms it up
        _client().blpop([DONE], timeout=60)
        yield


@contextmanager
def _running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=child_set_up(0),  # noqa: PLW1509 - it takes no locks
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(15)


def _answers() -> bool:
    try:
        return bool(_client().ping())
    except redis.RedisError:
        return False
