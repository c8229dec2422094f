"""When tasks start and end, as far as it is known.

Redis keeps what `inference/forecast.py` has found out, for each model where the queue will be when,
and how long its ended tasks took: so `of` reads next to nothing. Without Redis, or before a task of
its model has ended, nothing is known.
"""

import json
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from functools import lru_cache

import redis
from django.db import connection

from inference.models import GenerationTask
from inference.scheduling.durations import Sample, durations, quantile, remaining
from monitoring import database_clock
from monitoring.events.events import EtaSeconds
from monitoring.redis.client import client

# Of what is told of a task's start and end.
SHARES = (0.1, 0.5, 0.9)
_KEY = "estimates"
KEPT_SECONDS = 60
_READ_AGAIN_SECONDS = 0.25

# From so many on, what is told goes by how far off it was before.
MIN_ERRORS = 10

# Where the queue is: a position, when its task starts (quantiles, in seconds), and how long its
# model then takes to load.
Point = tuple[int, list[float], float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """When a task starts and ends; the moments are medians."""

    start_at: datetime
    finish_at: datetime
    eta_seconds: EtaSeconds


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What the last simulation found.

    `samples`: by model, in the order of their sizes. `points`: by model, in the order of their
    positions. `wait_seconds`: by queue, when it will have gone on a little; not of an empty one.
    `errors`: by model, of its last tasks, how many times as long as expected each took from its
    submission to its end, sorted.
    """

    samples: Mapping[str, Sequence[Sample]]
    points: Mapping[str, Sequence[Point]]
    wait_seconds: Mapping[str, float]
    errors: Mapping[str, Sequence[float]]


_lock = threading.Lock()
_read_at = float("-inf")
_read: Snapshot | None = None


def of(task: GenerationTask, position: int | None = None) -> Estimate | None:
    """When it starts and ends; None where nothing is known, and once it has ended.

    `position`: how many go before it; None: all that wait.
    """
    if task.has_ended or (snapshot := _snapshot()) is None:
        return None
    if not (seconds := _durations(snapshot, task)):
        return None
    now = database_clock.now()
    if task.status == GenerationTask.Status.PROCESSING:
        if task.started_at is None:
            return None
        start_at = task.started_at
        left = remaining(seconds, max(0.0, (now - start_at).total_seconds()))
        ends = [quantile(left, share) for share in SHARES]
    else:
        starts, load = start(snapshot.points, task.model_name, position)
        # A late start and a long run may well come together: both are longer in a busy time.
        ends = [
            starting + load + quantile(seconds, share)
            for starting, share in zip(starts, SHARES, strict=True)
        ]
        start_at = now + timedelta(seconds=starts[1])
        errors = snapshot.errors.get(task.model_name, ())
        if len(errors) >= MIN_ERRORS:
            start_at = now + timedelta(seconds=starts[1] * quantile(errors, 0.5))
            ends = [ends[1] * quantile(errors, share) for share in SHARES]
    p10, p50, p90 = (round(end, 3) for end in ends)
    return Estimate(start_at, now + timedelta(seconds=p50), EtaSeconds(p10=p10, p50=p50, p90=p90))


def run_seconds(task: GenerationTask) -> float | None:
    """How long it will run once it has started, the median; None where nothing is known."""
    snapshot = _snapshot()
    seconds = _durations(snapshot, task) if snapshot else []
    return round(quantile(seconds, 0.5), 3) if seconds else None


def _durations(snapshot: Snapshot, task: GenerationTask) -> Sequence[float]:
    """The seconds that it may run, sorted, each as likely; none where nothing is known."""
    # As the database counts it; SQLite keeps other letters than ASCII's as escapes.
    is_escaped = connection.vendor == "sqlite"
    size = len(json.dumps(task.request, ensure_ascii=is_escaped))
    return _durations_of(snapshot, task.model_name, size, task.request["params"]["max_tokens"])


@lru_cache(maxsize=8)
def _durations_of(snapshot: Snapshot, model: str, size: int, max_tokens: int) -> Sequence[float]:
    """A submission asks twice, and many that follow are as large."""
    return durations(snapshot.samples.get(model, ()), size, max_tokens)


def wait_seconds() -> int | None:
    """After how long the queues will have gone on a little; None where nothing is known."""
    snapshot = _snapshot()
    if snapshot is None or not snapshot.wait_seconds:
        return None
    return int(min(300.0, max(1.0, min(snapshot.wait_seconds.values()))))


def start(
    points_of: Mapping[str, Sequence[Point]], model_name: str, position: int | None
) -> tuple[list[float], float]:
    """Quantiles of when a task of the model starts there, and how long the model then loads."""
    points = points_of.get(model_name)
    if not points:
        return [0.0] * len(SHARES), 0.0
    if position is None or position >= points[-1][0]:
        return points[-1][1:]
    index = bisect_left([point[0] for point in points], position)
    if index == 0 or points[index][0] == position:
        return points[index][1:]
    (before, low, _), (after, high, load) = points[index - 1], points[index]
    share = (position - before) / (after - before)
    return [a + share * (b - a) for a, b in zip(low, high, strict=True)], load


def _snapshot() -> Snapshot | None:
    """What was kept last, as this process read it a moment ago."""
    global _read_at, _read
    if time.monotonic() - _read_at < _READ_AGAIN_SECONDS or not _lock.acquire(blocking=False):
        return _read
    try:
        text = client().get(_KEY)
        _read = None if text is None else _snapshot_of(text)
    except redis.RedisError:
        _read = None
    finally:
        _read_at = time.monotonic()
        _lock.release()
    return _read


def keep(snapshot: Snapshot) -> None:
    """For all processes, until the next one. Raises redis.RedisError."""
    stored = {
        "samples": {
            name: [astuple(sample) for sample in samples]
            for name, samples in snapshot.samples.items()
        },
        "points": snapshot.points,
        "wait_seconds": snapshot.wait_seconds,
        "errors": snapshot.errors,
    }
    client().set(_KEY, json.dumps(stored), ex=KEPT_SECONDS)


def _snapshot_of(text: str) -> Snapshot:
    stored = json.loads(text)
    return Snapshot(
        samples={
            name: [Sample(*each) for each in samples] for name, samples in stored["samples"].items()
        },
        points={
            name: [(position, starts, load) for position, starts, load in points]
            for name, points in stored["points"].items()
        },
        wait_seconds=stored["wait_seconds"],
        errors=stored["errors"],
    )


def forget() -> None:
    """Read again at the next call, as a new process does."""
    global _read_at, _read
    _read_at, _read = float("-inf"), None
