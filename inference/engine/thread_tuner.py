"""How many threads compute a step, where others want the same cores."""

import logging
from collections.abc import Generator, Sequence
from statistics import median

logger = logging.getLogger(__name__)

# So many steps of a count are compared with as many of another.
NUM_STEPS = 3
# A count has to be so much faster to be taken.
_MIN_GAIN = 0.1
# Steps that have become so much slower are a reason to compare, once they have been so for a while:
# what others do for some milliseconds each second is over before threads could follow it.
_SLOWER = 1.5
_SLOW_SECONDS = 0.15
_MIN_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 16.0
# From so many tokens on, a step takes about as long as it has tokens.
_LINEAR_TOKENS = 16

# Number of tokens and seconds of a step.
_Steps = Generator[None, tuple[int, float], float | None]


class ThreadTuner:
    """Follows what is fastest: now and then it tries out one count less, and one more.

    The threads of a step wait for each other hundreds of times. Where another process has one of
    the cores, all of them wait for that, and with one thread less a step can be ten times as fast.
    Only steps of as many tokens are compared; the longer nothing is gained, the rarer.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        """`counts` to choose from, in order; it begins with the last one."""
        self._counts = counts
        self._index = len(counts) - 1
        self.num_threads = counts[-1]
        self._kind = 0
        self._seconds = 0.0
        self._watching = self._watch()
        next(self._watching)

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Learn from a step; the next one is to be computed by `num_threads`."""
        if len(self._counts) > 1:
            self._watching.send((num_tokens, seconds))

    def _watch(self) -> _Steps:
        pause = _MIN_PAUSE_SECONDS
        usual: dict[int, float] = {}
        slow_since: float | None = None
        while True:
            began_at = self._seconds
            if (cost := (yield from self._cost())) is None:
                continue
            kind = self._kind
            if cost < _SLOWER * usual.get(kind, cost):
                slow_since = None
                is_due = self._seconds >= pause
            else:
                slow_since = began_at if slow_since is None else slow_since
                is_due = self._seconds - slow_since >= _SLOW_SECONDS
            if not is_due:
                continue
            slow_since = None
            usual[kind], self._seconds = cost, 0.0
            for index in (self._index - 1, self._index + 1):
                if not 0 <= index < len(self._counts):
                    continue
                self.num_threads = self._counts[index]
                other = yield from self._cost(limit=_SLOWER * cost)
                if other is None:
                    break
                if other < (1 - _MIN_GAIN) * cost:
                    logger.info("%d threads are faster now", self.num_threads)
                    self._index = index
                    usual.clear()
                    pause = 0.0
                    break
            else:
                pause = min(max(2 * pause, _MIN_PAUSE_SECONDS), _MAX_PAUSE_SECONDS)
            self.num_threads = self._counts[self._index]

    def _cost(self, limit: float = float("inf")) -> _Steps:
        """Seconds a token in the next steps; None where one is of another kind than those before.

        The first one above the limit is enough.
        """
        costs: list[float] = []
        while len(costs) < NUM_STEPS:
            num_tokens, seconds = yield
            self._seconds += seconds
            kind = min(num_tokens, _LINEAR_TOKENS)
            if kind != self._kind:
                self._kind = kind
                return None
            costs.append(seconds / num_tokens)
            if costs[-1] > limit:
                return costs[-1]
        return median(costs)


def counts_up_to(num_threads: int) -> list[int]:
    """All of few threads; of many, some that differ enough to be told apart."""
    return sorted({max(1, num_threads * eighths // 8) for eighths in (1, 2, 4, 6, 7, 8)})
