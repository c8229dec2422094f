"""How fast a server answers, from what its calls have taken."""

import math
import time
from collections.abc import Callable

# What a new call counts for.
_WEIGHT = 0.3
# How long the least of the times counts.
_LEAST_SECONDS = 300.0
_MANY_TIMES = 2.0


class _Smoothed:
    """A time that is measured again and again, smoothed, and the least that it was of late.

    `value` is None before the first.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.value: float | None = None
        self._clock = clock
        # Of this span of time, and of the one before.
        self._least = [math.inf, math.inf]
        self._span_began = clock()

    def add(self, seconds: float) -> None:
        old = seconds if self.value is None else self.value
        self.value = old + _WEIGHT * (seconds - old)
        if self._clock() > self._span_began + _LEAST_SECONDS:
            self._least = [math.inf, self._least[0]]
            self._span_began = self._clock()
        self._least[0] = min(self._least[0], self.value)

    @property
    def least(self) -> float:
        return min(self._least)


class Latency:
    """Smoothed times of one server, in seconds: to the first delta, and from each to the next."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._first, self._each = _Smoothed(clock), _Smoothed(clock)

    def heard_first(self, seconds: float) -> None:
        """The first delta of a call has come after so long."""
        self._first.add(seconds)

    def heard_all(self, first: float, others: float, num_others: int) -> float:
        """How long a call took to its first delta, and how long for the others.

        Returns the part of that time in which the server worked on it: less than 1 where waits are
        more than twice as long as the shortest of late. A server that has become slower as a whole
        takes longer to the first delta too, without any wait.
        """
        if num_others:
            self._each.add(others / num_others)
        least = self._first.least
        if self._each.value is not None and self._each.least > 0:
            least *= self._each.value / self._each.least
        if self._first.value is None or self._first.value < _MANY_TIMES * least:
            return 1.0
        return min(1.0, (least + others) / (first + others))

    def seconds(self, num_deltas: float, waited: float) -> float | None:
        """What an answer of so many deltas takes; None before the first.

        `waited`: for how long a call has had no delta yet.
        """
        if self._first.value is None:
            return waited or None
        return max(self._first.value, waited) + num_deltas * (self._each.value or 0.0)
