"""How fast a server answers, from what its calls have taken."""

import math
import time
from collections.abc import Callable

# What a new call counts for.
_WEIGHT = 0.3
# How long the least of the times to the first delta counts.
_LEAST_SECONDS = 300.0
_MANY_TIMES = 2.0


class Latency:
    """Smoothed times of one server, in seconds: to the first delta, and from each to the next."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: float | None = None
        self._each: float | None = None
        # Of this span of time, and of the one before.
        self._least = [math.inf, math.inf]
        self._span_began = clock()

    def heard_first(self, seconds: float) -> None:
        """The first delta of a call has come after so long."""
        self._first = _mixed(self._first, seconds)
        if self._clock() > self._span_began + _LEAST_SECONDS:
            self._least = [math.inf, self._least[0]]
            self._span_began = self._clock()
        self._least[0] = min(self._least[0], self._first)

    def heard_all(self, first: float, others: float, num_others: int) -> float:
        """How long a call took to its first delta, and how long for the others.

        Returns the part of that time in which the server worked on it: less than 1 where waits are
        more than twice as long as the shortest of late.
        """
        if num_others:
            self._each = _mixed(self._each, others / num_others)
        least = min(self._least)
        if self._first is None or self._first < _MANY_TIMES * least:
            return 1.0
        return min(1.0, (least + others) / (first + others))

    def seconds(self, num_deltas: float, waited: float) -> float | None:
        """What an answer of so many deltas takes; None before the first.

        `waited`: for how long a call has had no delta yet.
        """
        if self._first is None:
            return waited or None
        return max(self._first, waited) + num_deltas * (self._each or 0.0)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
