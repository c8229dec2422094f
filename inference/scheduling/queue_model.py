"""A queue as it will go on: sessions that claim tasks in order, over a simulated clock.

The rules are those of `inference/lifecycle/claim.py` and of the sessions. Tasks are given in the
order of the queue: one that has not arrived yet holds up nobody.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Work:
    """A task that waits: how long it runs alone of its kind, and when it is submitted."""

    model: str
    seconds: float
    priority: float = 0.0
    arrives: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """When a task is claimed, when its model is there, and when it ends."""

    start: float
    ready: float
    end: float


class Policy(StrEnum):
    """How long a session stays with its model while one of another model waits before its own."""

    STRICT = "strict"  # not at all
    SINCE_SUBMISSION = (
        "since submission"  # for the window, since that one came or the session began
    )
    SINCE_TURN = "since its turn"  # for the window, since that one's turn came


@dataclass(slots=True)
class Gpu:
    """A GPU with one model running, and so many sequences in it.

    `running`: when those end that run at the start. `loaded`: the models in memory, the one used
    last at the end; there is room for `max_loaded`. `in_turn_at`: when its session last took the
    task whose turn it was.
    """

    num_slots: int
    load_seconds: Mapping[str, float]
    window: float
    policy: Policy = Policy.SINCE_TURN
    model: str = ""
    loaded: list[str] = field(default_factory=list)
    max_loaded: int = 1
    running: list[float] = field(default_factory=list)
    is_open_from: float = 0.0
    began: float = 0.0
    in_turn_at: float = 0.0
    is_in_session: bool = False
    num_loads: int = 0


class _Waiting:
    """The tasks that wait, by model, in the order of the queue."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = works
        self._of_model: defaultdict[str, list[int]] = defaultdict(list)
        for index in range(len(works) - 1, -1, -1):
            self._of_model[works[index].model].append(index)
        self.num_left = len(works)

    def first(self, model: str, now: float) -> int | None:
        """The number of the model's first task, if it has arrived."""
        of_model = self._of_model.get(model)
        return of_model[-1] if of_model and self._works[of_model[-1]].arrives <= now else None

    def firsts(self, now: float) -> list[int]:
        return [each for model in self._of_model if (each := self.first(model, now)) is not None]

    def take(self, index: int) -> Work:
        work = self._works[index]
        self._of_model[work.model].pop()
        self.num_left -= 1
        return work

    def next_arrival(self, now: float) -> float | None:
        """When the next task comes, of those that have not."""
        coming = [
            self._works[indexes[-1]].arrives for indexes in self._of_model.values() if indexes
        ]
        return min((each for each in coming if each > now), default=None)


def run_gpus(works: Sequence[Work], gpus: Sequence[Gpu]) -> list[Run]:
    """What becomes of each task on GPUs that share a queue."""
    waiting = _Waiting(works)

    def claim(now: float, place: int) -> int | None:
        gpu = gpus[place]
        if now < gpu.is_open_from or len(gpu.running) >= gpu.num_slots:
            return None
        firsts = waiting.firsts(now)
        if not firsts:
            gpu.is_in_session = bool(gpu.running)
            return None
        first = min(firsts)
        if works[first].model == gpu.model:
            gpu.in_turn_at = now
            return first
        own = waiting.first(gpu.model, now)
        if own is not None and gpu.is_in_session and works[own].priority >= works[first].priority:
            came = gpu.began if gpu.policy == Policy.SINCE_SUBMISSION else gpu.in_turn_at
            since = max(works[first].arrives, came)
            if gpu.policy != Policy.STRICT and now - since < gpu.window:
                return own
        return None if gpu.running else first

    def start(now: float, place: int, work: Work) -> Run:
        gpu = gpus[place]
        ready = max(now, gpu.is_open_from)
        if work.model != gpu.model or not gpu.is_in_session:
            gpu.began, gpu.in_turn_at, gpu.is_in_session = now, now, True
        if work.model != gpu.model:
            gpu.model = work.model
            if work.model in gpu.loaded:
                gpu.loaded.remove(work.model)
            else:
                gpu.num_loads += 1
                ready += gpu.load_seconds.get(work.model, 0.0)
                del gpu.loaded[: max(0, len(gpu.loaded) + 1 - gpu.max_loaded)]
            gpu.loaded.append(work.model)
            gpu.is_open_from = ready
        end = ready + work.seconds
        heapq.heappush(gpu.running, end)
        return Run(now, ready, end)

    places = [(gpu.running, lambda gpu=gpu: gpu.is_open_from) for gpu in gpus]
    return _simulate(works, waiting, places, claim, start)


def run_calls(
    works: Sequence[Work], num_slots: int, limits: Mapping[str, int], running: Sequence[Work]
) -> list[Run]:
    """What becomes of each task of cloud models, of which so many calls may be in flight at a time.

    `limits`: of single models. `running`: what is in flight, with the seconds left to each.
    """
    waiting = _Waiting(works)
    num_running = Counter(work.model for work in running)
    in_flight = [(work.seconds, work.model) for work in running]
    heapq.heapify(in_flight)
    ends = [end for end, _ in in_flight]

    def claim(now: float, place: int) -> int | None:
        while in_flight and in_flight[0][0] <= now:
            num_running[heapq.heappop(in_flight)[1]] -= 1
        if len(in_flight) >= num_slots:
            return None
        open_models = (
            each
            for each in waiting.firsts(now)
            if num_running[works[each].model] < limits.get(works[each].model, num_slots)
        )
        return min(open_models, default=None)

    def start(now: float, place: int, work: Work) -> Run:
        end = now + work.seconds
        heapq.heappush(in_flight, (end, work.model))
        heapq.heappush(ends, end)
        num_running[work.model] += 1
        return Run(now, now, end)

    return _simulate(works, waiting, [(ends, lambda: 0.0)], claim, start)


def _simulate(
    works: Sequence[Work],
    waiting: _Waiting,
    places: Sequence[tuple[list[float], Callable[[], float]]],
    claim: Callable[[float, int], int | None],
    start: Callable[[float, int, Work], Run],
) -> list[Run]:
    """Have each place claim what it may, then go on to the next moment at which something changes.

    A place: the ends of what runs in it, as a heap, and from when on it is open.
    """
    runs: list[Run | None] = [None] * len(works)
    now = 0.0
    while waiting.num_left:
        for place, (ends, _) in enumerate(places):
            while ends and ends[0] <= now:
                heapq.heappop(ends)
            while (index := claim(now, place)) is not None:
                runs[index] = start(now, place, waiting.take(index))
        if not waiting.num_left:
            break
        moments = [ends[0] for ends, _ in places if ends]
        moments += [moment for _, opens in places if (moment := opens()) > now]
        if (arrival := waiting.next_arrival(now)) is not None:
            moments.append(arrival)
        now = min(moment for moment in moments if moment > now)
    return [run for run in runs if run is not None]
