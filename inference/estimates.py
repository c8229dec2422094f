"""When tasks start and end, as far as it is known.

One process simulates all queues every other second (`refresh`): how those that run and wait will go
on, each as long as tasks like it have taken. Redis keeps what a task has to know, for each model
where the queue will be when, and how long its ended tasks took: so `of` reads next to nothing.
Without Redis, or before a task of its model has ended, nothing is known.
"""

import contextlib
import json
import random
import threading
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any

import redis
from django.conf import settings
from django.db.models import TextField
from django.db.models.functions import Cast, Length
from django.utils import timezone

from inference.models import GenerationTask, Queue, RegisteredModel, owner_turns
from inference.scheduling.durations import Sample, durations, quantile, remaining
from inference.scheduling.queue_model import Gpu, Run, Work, run_calls, run_gpus
from monitoring.events.events import EtaSeconds
from monitoring.hardware import workers
from monitoring.redis.client import client

REFRESH_SECONDS = 2.0
_KEY = "estimates"
_KEPT_SECONDS = 60
_READ_AGAIN_SECONDS = 0.5
_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_KEPT_SAMPLES = 200
_READ_SAMPLES = 1000
# As many simulated tasks in all, in at least and at most so many runs.
_SIMULATED_TASKS = 60_000
_MIN_RUNS, _MAX_RUNS = 5, 25
# Of a longer queue all models are asked at once what would become of one more task.
_LONG_QUEUE = 200
_MAX_POINTS = 24
# Requests count as equally large within so many characters.
_SIZE_STEP = 32
_REFRESH_SHARE = 10

# Where the queue is: a position, when its task starts (quantiles, in seconds from `at` on), and how
# long its model then takes to load.
_Point = tuple[int, list[float], float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """When a task starts and ends; the moments are medians."""

    start_at: datetime
    finish_at: datetime
    eta_seconds: EtaSeconds


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What the last simulation found; `at` in seconds since 1970."""

    at: float
    samples: dict[str, list[Sample]]
    points: dict[str, list[_Point]]
    wait_seconds: dict[str, float]
    # Those asked for, since tasks are often alike: by model, size and max_tokens.
    durations: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)


_lock = threading.Lock()
_read_at = float("-inf")
_read: _Snapshot | None = None


def of(task: GenerationTask, position: int | None = None) -> Estimate | None:
    """When it starts and ends; None where nothing is known, and once it has ended.

    `position`: how many go before it; None: all that wait.
    """
    if task.has_ended or (snapshot := _snapshot()) is None:
        return None
    samples = snapshot.samples.get(task.model_name)
    if not samples:
        return None
    size = len(json.dumps(task.request, ensure_ascii=False)) // _SIZE_STEP * _SIZE_STEP
    key = (task.model_name, size, task.request["params"]["max_tokens"])
    if (seconds := snapshot.durations.get(key)) is None:
        seconds = snapshot.durations[key] = durations(samples, *key[1:])
    now = time.time()
    if task.status == GenerationTask.Status.PROCESSING:
        if task.started_at is None:
            return None
        start_at = task.started_at
        ends = remaining(seconds, max(0.0, now - start_at.timestamp()))
    else:
        starts, load = _start(snapshot, task.model_name, position)
        starts = [max(0.0, snapshot.at + each - now) for each in starts]
        ends = sorted(start + load + each for start in starts for each in seconds)
        start_at = datetime.fromtimestamp(now + quantile(starts, 0.5), UTC)
    p10, p50, p90 = (round(quantile(ends, share), 3) for share in (0.1, 0.5, 0.9))
    finish_at = datetime.fromtimestamp(now + p50, UTC)
    return Estimate(start_at, finish_at, EtaSeconds(p10=p10, p50=p50, p90=p90))


def wait_seconds() -> int | None:
    """After how long the queues will have gone on a little; None where nothing is known."""
    snapshot = _snapshot()
    if snapshot is None or not snapshot.wait_seconds:
        return None
    return int(min(300.0, max(1.0, min(snapshot.wait_seconds.values()))))


def _start(snapshot: _Snapshot, model_name: str, position: int | None) -> tuple[list[float], float]:
    """Quantiles of when a task of the model starts there, and how long the model then loads."""
    points = snapshot.points.get(model_name)
    if not points:
        return [0.0] * len(_SHARES), 0.0
    if position is None or position >= points[-1][0]:
        return points[-1][1:]
    index = bisect_left([point[0] for point in points], position)
    if index == 0 or points[index][0] == position:
        return points[index][1:]
    (before, low, _), (after, high, load) = points[index - 1], points[index]
    share = (position - before) / (after - before)
    return [a + share * (b - a) for a, b in zip(low, high, strict=True)], load


def _snapshot() -> _Snapshot | None:
    """As of half a second ago at most, in this process."""
    global _read_at, _read
    if time.monotonic() - _read_at < _READ_AGAIN_SECONDS or not _lock.acquire(blocking=False):
        return _read
    try:
        text = client().get(_KEY)
        _read = None if text is None else _parsed(text)
    except redis.RedisError:
        _read = None
    finally:
        _read_at = time.monotonic()
        _lock.release()
    return _read


def _parsed(text: str) -> _Snapshot:
    stored = json.loads(text)
    return _Snapshot(
        at=stored["at"],
        samples={
            name: [Sample(*each) for each in samples] for name, samples in stored["samples"].items()
        },
        points={
            name: [(position, starts, load) for position, starts, load in points]
            for name, points in stored["points"].items()
        },
        wait_seconds=stored["wait_seconds"],
    )


def forget() -> None:
    """Read again at the next call, as a new process does."""
    global _read_at, _read
    _read_at, _read = float("-inf"), None


# The simulation

_learned: defaultdict[str, deque[Sample]] = defaultdict(lambda: deque(maxlen=_KEPT_SAMPLES))
_load_seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=20))
_learned_until: datetime | None = None
_simulating = threading.Lock()
_next_refresh_at = float("-inf")


def refresh() -> None:
    """Learn from what has ended, simulate what runs and waits, and keep the result in Redis.

    Not while this process is at it, and for at most a tenth of the time.
    """
    global _next_refresh_at
    if time.monotonic() < _next_refresh_at or not _simulating.acquire(blocking=False):
        return
    try:
        started = time.monotonic()
        _learn()
        stored: dict[str, Any] = {
            "at": time.time(),
            "samples": {name: [_plain(each) for each in kept] for name, kept in _learned.items()},
            "points": {},
            "wait_seconds": {},
        }
        with contextlib.suppress(redis.RedisError):
            num_workers = workers.count([Queue.GPU, Queue.API])
            for queue in (Queue.GPU, Queue.API):
                points, wait = _QueueNow(queue, max(1, num_workers[queue])).simulate()
                stored["points"] |= points
                if wait is not None:
                    stored["wait_seconds"][queue] = wait
            client().set(_KEY, json.dumps(stored), ex=_KEPT_SECONDS)
        _next_refresh_at = time.monotonic() + _REFRESH_SHARE * (time.monotonic() - started)
    finally:
        _simulating.release()


def unlearn() -> None:
    """Know nothing any more, as a new process does."""
    global _learned_until, _next_refresh_at
    _learned.clear()
    _load_seconds.clear()
    _learned_until, _next_refresh_at = None, float("-inf")
    forget()


def _plain(sample: Sample) -> list[float]:
    return [
        sample.size,
        sample.num_tokens,
        round(sample.prefill_seconds, 4),
        round(sample.seconds_per_token, 6),
        sample.was_cut,
    ]


_SIZE = Length(Cast("request", TextField()))


def _learn() -> None:
    """Take in the tasks that have ended since the last time."""
    global _learned_until
    ended = GenerationTask.objects.filter(expires_at__isnull=False)
    if _learned_until is not None:
        ended = ended.filter(expires_at__gt=_learned_until)
    rows = ended.order_by("-expires_at").values_list(
        *("expires_at", "status", "model_name", _SIZE, "inference_ms", "ttft_ms", "model_load_ms"),
        *("result__usage__completion_tokens", "result__finish_reason"),
    )
    for (
        expires_at,
        status,
        name,
        size,
        inference_ms,
        ttft_ms,
        load_ms,
        num_tokens,
        reason,
    ) in reversed(rows[:_READ_SAMPLES]):
        _learned_until = expires_at
        if load_ms:
            _load_seconds[name].append(load_ms / 1000)
        if status != GenerationTask.Status.COMPLETED or inference_ms is None:
            continue
        prefill = inference_ms if ttft_ms is None else max(0.0, ttft_ms - (load_ms or 0.0))
        num = num_tokens or 1
        per_token = max(0.0, inference_ms - prefill) / max(1, num - 1)
        sample = Sample(size, num, prefill / 1000, per_token / 1000, reason == "length")
        _learned[name].append(sample)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A pending task, as far as the simulation needs it."""

    model: str
    priority: float
    due_in: float
    seconds: Sequence[float]


class _QueueNow:
    """What runs and waits in a queue, in the order in which it is claimed."""

    def __init__(self, queue: Queue, num_workers: int) -> None:
        self._queue = queue
        self._num_workers = num_workers
        self._now = timezone.now()
        unfinished = GenerationTask.objects.unfinished().filter(queue=queue)
        rows = list(
            unfinished.order_by("-priority", "created_at", "id").values_list(
                *("status", "owner", "priority", "model_name", "due_at", "started_at", "worker"),
                *("request__params__max_tokens", _SIZE),
            )
        )
        self._models = {
            model.name: model
            for model in RegisteredModel.objects.filter(name__in={*_learned, *(r[3] for r in rows)})
        }
        waiting: list[tuple[Any, _Waiting]] = []
        # By worker: the models and durations that are left of what runs.
        self._running: defaultdict[str, list[tuple[str, list[float]]]] = defaultdict(list)
        num_of_owner: defaultdict[tuple[float, str], int] = defaultdict(int)
        turns = {
            priority: owner_turns(queue, priority)
            for priority in {row[2] for row in rows if row[0] == GenerationTask.Status.PENDING}
        }
        for status, owner, priority, name, due_at, started_at, worker, max_tokens, size in rows:
            seconds = self._durations(name, size, max_tokens or settings.DEFAULT_MAX_TOKENS)
            if status == GenerationTask.Status.PROCESSING:
                elapsed = (self._now - started_at).total_seconds() if started_at else 0.0
                self._running[worker].append((name, remaining(seconds, elapsed)))
                continue
            index = num_of_owner[priority, owner]
            num_of_owner[priority, owner] += 1
            known = turns[priority].get(owner)
            key = (-priority, known.key(index) if known else float(index), owner)
            due_in = max(0.0, (due_at - self._now).total_seconds()) if due_at else 0.0
            waiting.append((key, _Waiting(name, priority, due_in, seconds)))
        waiting.sort(key=lambda each: each[0])
        self._waiting = [each for _, each in waiting]

    def _durations(self, name: str, size: int, max_tokens: int) -> list[float]:
        """Of a model of which nothing is known: as of the others."""
        if name not in _learned:
            return self._of_any or [1.0]
        return durations(_learned[name], size, max_tokens)

    @property
    def _of_any(self) -> list[float]:
        every = [each for kept in _learned.values() for each in kept]
        return durations(every, 0, settings.DEFAULT_MAX_TOKENS)

    def simulate(self) -> tuple[dict[str, list[_Point]], float | None]:
        """By model, where the queue will be when; and when it will have gone on a little."""
        known = [
            name
            for name, model in self._models.items()
            if name in _learned
            and (model.provider == RegisteredModel.Provider.LOCAL) == (self._queue == Queue.GPU)
        ]
        # One more task of each model comes last: what would become of the next one.
        is_long = len(self._waiting) > _LONG_QUEUE
        tails = [known] if is_long else [[name] for name in known]
        points: dict[str, list[_Point]] = {}
        wait: float | None = None
        for tail in tails:
            works = self._waiting + [
                _Waiting(name, -1.0, 0.0, durations(_learned[name], 0, settings.DEFAULT_MAX_TOKENS))
                for name in tail
            ]
            num_runs = max(_MIN_RUNS, min(_MAX_RUNS, _SIMULATED_TASKS // (len(works) * len(tails))))
            runs = [self._run(works) for _ in range(num_runs)]
            for name in tail:
                points[name] = _points(works, runs, name)
            wait = median(run[len(works) // 100].start for run in runs)
        return points, wait if self._waiting else None

    def _run(self, waiting: Sequence[_Waiting]) -> list[Run]:
        works = [
            Work(each.model, random.choice(each.seconds), each.priority, each.due_in)  # noqa: S311
            for each in waiting
        ]
        if self._queue == Queue.GPU:
            return run_gpus(works, self._gpus())
        limits: dict[str, int] = {
            name: model.config["max_concurrency"] * self._num_workers
            for name, model in self._models.items()
            if model.config.get("max_concurrency") is not None
        }
        in_flight = [
            Work(name, random.choice(left))  # noqa: S311
            for held in self._running.values()
            for name, left in held
        ]
        return run_calls(
            works, settings.MAX_CLOUD_CONCURRENCY * self._num_workers, limits, in_flight
        )

    def _gpus(self) -> list[Gpu]:
        loaded = [
            name
            for name, model in self._models.items()
            if model.status == RegisteredModel.Status.LOADED
        ]
        loads = {name: median(kept) for name, kept in _load_seconds.items()}
        gpus = []
        for held in [*self._running.values(), *[[]] * self._num_workers][
            : max(self._num_workers, len(self._running))
        ]:
            model = held[0][0] if held else (loaded[-1] if loaded else "")
            gpu = Gpu(
                num_slots=settings.MAX_NUM_SEQS,
                load_seconds=loads,
                window=settings.SWAP_WINDOW_SECONDS,
                model=model,
                loaded=[*loaded],
                max_loaded=max(1, len(loaded)),
                running=sorted(random.choice(left) for _, left in held),  # noqa: S311
            )
            gpus.append(gpu)
        return gpus


def _points(waiting: Sequence[_Waiting], runs: Sequence[Sequence[Run]], name: str) -> list[_Point]:
    """Where the tasks of a model start, at up to so many of their positions, the last one too."""
    indexes = [index for index, each in enumerate(waiting) if each.model == name]
    step = max(1, len(indexes) // _MAX_POINTS)
    points: list[_Point] = []
    for index in {*indexes[::step], indexes[-1]}:
        starts = sorted(run[index].start for run in runs)
        load = median(run[index].ready - run[index].start for run in runs)
        quantiles = [round(quantile(starts, share), 3) for share in _SHARES]
        points.append((index, quantiles, round(load, 3)))
    return sorted(points)
