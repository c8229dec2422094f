"""How the queues will go on: a simulation, in which each task takes as long as its like has taken.

One process does it each second and keeps what it finds out for `inference/estimates.py`.
"""

import contextlib
import random
import threading
import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain
from statistics import median
from typing import Any

import redis
from django.conf import settings
from django.db.models import TextField
from django.db.models.functions import Cast, Length

from inference import estimates
from inference.models import GenerationTask, Queue, RegisteredModel, owner_turns
from inference.scheduling.durations import MAX_ALIKE, Sample, durations, quantile, remaining
from inference.scheduling.queue_model import Gpu, Run, Work, run_calls, run_gpus
from monitoring import database_clock
from monitoring.hardware import workers

_KEPT_SAMPLES = 200
_READ_SAMPLES = 1000
_KEPT_ERRORS = 100
_KEPT_PAST = 300
# As many simulated tasks in all, in at least and at most so many runs.
_SIMULATED_TASKS = 60_000
_MIN_RUNS, _MAX_RUNS = 5, 25
# Of a longer queue all models are asked at once what would become of one more task.
_LONG_QUEUE = 200
_MAX_POINTS = 24
_REFRESH_SHARE = 10

_learned: defaultdict[str, deque[Sample]] = defaultdict(lambda: deque(maxlen=_KEPT_SAMPLES))
_load_seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=20))
_errors: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT_ERRORS))
# What was found out at which times.
_past: deque[tuple[datetime, estimates.Snapshot]] = deque(maxlen=_KEPT_PAST)
_learned_until: datetime | None = None
_simulating = threading.Lock()
_next_refresh_at, _idle_until = float("-inf"), float("-inf")


def refresh() -> bool:
    """Learn from what has ended, simulate what runs and waits, and keep the result in Redis.

    Not while this process is at it, for at most a tenth of the time, and seldom where nothing runs.
    Whether it was done.
    """
    global _next_refresh_at, _idle_until
    if time.monotonic() < _next_refresh_at or not _simulating.acquire(blocking=False):
        return False
    try:
        started = time.monotonic()
        is_idle = not _learn() and not GenerationTask.objects.unfinished().exists()
        if is_idle and started < _idle_until:
            return False
        now = database_clock.now()
        samples = {
            name: sorted(kept, key=lambda sample: sample.size) for name, kept in _learned.items()
        }
        points: dict[str, list[estimates.Point]] = {}
        wait_seconds: dict[str, float] = {}
        with contextlib.suppress(redis.RedisError):
            num_workers = workers.count([Queue.GPU, Queue.API])
            for queue in (Queue.GPU, Queue.API):
                queue_now = _QueueNow(queue, max(1, num_workers[queue]), samples, now)
                points_of_queue, wait = queue_now.simulate()
                points |= points_of_queue
                if wait is not None:
                    wait_seconds[queue] = wait
            errors = {name: sorted(kept) for name, kept in _errors.items()}
            snapshot = estimates.Snapshot(samples, points, wait_seconds, errors)
            estimates.keep(snapshot)
            _past.append((now, snapshot))
            _idle_until = started + estimates.KEPT_SECONDS / 2 if is_idle else float("-inf")
        _next_refresh_at = time.monotonic() + _REFRESH_SHARE * (time.monotonic() - started)
        return True
    finally:
        _simulating.release()


def unlearn() -> None:
    """Know nothing any more, as a new process does."""
    global _learned_until, _next_refresh_at, _idle_until
    _learned.clear()
    _load_seconds.clear()
    _errors.clear()
    _past.clear()
    _learned_until, _next_refresh_at, _idle_until = None, float("-inf"), float("-inf")
    estimates.forget()


_SIZE = Length(Cast("request", TextField()))
_FIELDS = (
    *("expires_at", "status", "model_name", "size", "request__params__max_tokens", "attempt"),
    *("created_at", "finished_at", "inference_ms", "ttft_ms", "model_load_ms"),
    *("result__usage__completion_tokens", "result__finish_reason"),
)


def _learn() -> bool:
    """Take in the tasks that have ended since the last time; whether there were any."""
    global _learned_until
    ended = GenerationTask.objects.filter(expires_at__isnull=False)
    if _learned_until is not None:
        ended = ended.filter(expires_at__gt=_learned_until)
    rows = ended.order_by("-expires_at").annotate(size=_SIZE).values_list(*_FIELDS, named=True)
    found = list(rows[:_READ_SAMPLES])
    for row in reversed(found):
        _learned_until = row.expires_at
        if row.model_load_ms:
            _load_seconds[row.model_name].append(row.model_load_ms / 1000)
        if row.status == GenerationTask.Status.COMPLETED and row.inference_ms is not None:
            _learned[row.model_name].append(_sample(row))
            if row.attempt == 1 and (expected := _expected_seconds(row)) is not None:
                took = (row.finished_at - row.created_at).total_seconds()
                _errors[row.model_name].append(took / expected)
    return bool(found)


def _sample(row: Any) -> Sample:
    load_ms = row.model_load_ms or 0.0
    ttft_ms, num_tokens = row.ttft_ms, row.result__usage__completion_tokens or 1
    prefill = row.inference_ms if ttft_ms is None else max(0.0, ttft_ms - load_ms)
    per_token = max(0.0, row.inference_ms - prefill) / max(1, num_tokens - 1)
    was_cut = row.result__finish_reason == "length"
    return Sample(row.size, num_tokens, prefill / 1000, per_token / 1000, was_cut)


def _expected_seconds(row: Any) -> float | None:
    """When an ended task had to be expected to end, as the queue was when it came.

    None where too little was known of its model then.
    """
    place = bisect_right(_past, row.created_at, key=lambda past: past[0])
    samples = _past[place - 1][1].samples.get(row.model_name, ()) if place else ()
    if len(samples) < MAX_ALIKE:
        return None
    starts, load = estimates.start(_past[place - 1][1].points, row.model_name, None)
    max_tokens = row.request__params__max_tokens or settings.DEFAULT_MAX_TOKENS
    return max(0.001, starts[1] + load + quantile(durations(samples, row.size, max_tokens), 0.5))


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A pending task, as far as the simulation needs it."""

    model: str
    priority: float
    due_in: float
    seconds: Sequence[float]


class _QueueNow:
    """What runs and waits in a queue, in the order in which it is claimed."""

    def __init__(
        self,
        queue: Queue,
        num_workers: int,
        samples: Mapping[str, Sequence[Sample]],
        now: datetime,
    ) -> None:
        self._queue = queue
        self._num_workers = num_workers
        self._samples = samples
        unfinished = GenerationTask.objects.unfinished().filter(queue=queue)
        rows = list(
            unfinished.order_by("-priority", "created_at", "id").values_list(
                *("status", "owner", "priority", "model_name", "due_at", "started_at", "worker"),
                *("request__params__max_tokens", _SIZE),
            )
        )
        self._models = {
            model.name: model
            for model in RegisteredModel.objects.filter(name__in={*samples, *(r[3] for r in rows)})
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
                elapsed = (now - started_at).total_seconds() if started_at else 0.0
                self._running[worker].append((name, remaining(seconds, elapsed)))
                continue
            index = num_of_owner[priority, owner]
            num_of_owner[priority, owner] += 1
            known = turns[priority].get(owner)
            key = (-priority, known.key(index) if known else float(index), owner)
            due_in = max(0.0, (due_at - now).total_seconds()) if due_at else 0.0
            waiting.append((key, _Waiting(name, priority, due_in, seconds)))
        waiting.sort(key=lambda each: each[0])
        self._waiting = [each for _, each in waiting]

    def _durations(self, name: str, size: int, max_tokens: int) -> list[float]:
        """Of a model of which nothing is known: as of the others."""
        samples = self._samples.get(name) or self._samples_of_all
        return durations(samples, size, max_tokens) or [1.0]

    @cached_property
    def _samples_of_all(self) -> list[Sample]:
        return sorted(chain.from_iterable(self._samples.values()), key=lambda sample: sample.size)

    def simulate(self) -> tuple[dict[str, list[estimates.Point]], float | None]:
        """By model, where the queue will be when; and when it will have gone on a little."""
        known = [
            name
            for name, model in self._models.items()
            if name in self._samples
            and (model.provider == RegisteredModel.Provider.LOCAL) == (self._queue == Queue.GPU)
        ]
        # One more task of each model comes last: what would become of the next one.
        is_long = len(self._waiting) > _LONG_QUEUE
        tails = [known] if is_long else [[name] for name in known]
        points: dict[str, list[estimates.Point]] = {}
        wait: float | None = None
        for tail in tails:
            works = self._waiting + [
                _Waiting(name, -1.0, 0.0, self._durations(name, 0, settings.DEFAULT_MAX_TOKENS))
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


def _points(
    waiting: Sequence[_Waiting], runs: Sequence[Sequence[Run]], name: str
) -> list[estimates.Point]:
    """Where the tasks of a model start, at up to so many of their positions, the last one too."""
    indexes = [index for index, each in enumerate(waiting) if each.model == name]
    step = max(1, len(indexes) // _MAX_POINTS)
    points: list[estimates.Point] = []
    for index in {*indexes[::step], indexes[-1]}:
        starts = sorted(run[index].start for run in runs)
        load = median(run[index].ready - run[index].start for run in runs)
        quantiles = [round(quantile(starts, share), 3) for share in estimates.SHARES]
        points.append((index, quantiles, round(load, 3)))
    return sorted(points)
