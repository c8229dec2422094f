"""How many calls a server gets at a time, as far as it can be told from outside: AIMD, as in TCP.

The limit grows by one a round trip while it is used, twice as fast as that until the first sign of
too much; then it shrinks by a part, once a round trip.
"""

import time
from collections.abc import Callable

# Calls that a server gets at first, until it has shown what it takes.
_FIRST = 8
# After a refusal or a failure, and after calls that waited in the server.
_AFTER_FAILURE = 0.5
_AFTER_WAITING = 0.9
# A limit that hardly any calls use says nothing.
_USED_PART = 0.5


class AdaptiveLimit:
    """Between 1 and `most` calls at a time."""

    def __init__(
        self, most: int, first: int = _FIRST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._value = float(min(first, most))
        self._clock = clock
        self._is_starting = True
        self._lowered_at = float("-inf")

    def __int__(self) -> int:
        return int(self._value)

    def on_success(self, in_flight: int) -> bool:
        """A call has been answered, while so many were under way; returns whether it has grown."""
        if in_flight < self._value * _USED_PART:
            return False
        before = int(self)
        self._value = min(self._most, self._value + (1 if self._is_starting else 1 / self._value))
        return int(self) > before

    def on_failure(self, began_at: float) -> None:
        """A call that began then was refused, or failed."""
        self._lower(began_at, _AFTER_FAILURE)

    def on_waiting(self, began_at: float, in_flight: int) -> None:
        """A call that began then has waited in the server, while so many were under way."""
        if in_flight >= self._value * _USED_PART:
            self._lower(began_at, _AFTER_WAITING)

    def _lower(self, began_at: float, part: float) -> None:
        """What began before the limit was lowered tells of the limit before."""
        if began_at < self._lowered_at:
            return
        self._value = max(1.0, self._value * part)
        self._lowered_at = self._clock()
        self._is_starting = False
