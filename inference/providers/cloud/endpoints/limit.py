"""How many calls a server gets at a time, as far as it can be told from outside: AIMD, as in TCP.

The limit grows by one a round trip while it is used, twice as fast as that until the first sign of
too much; then it shrinks by a part, once a round trip.
"""

import time
from collections.abc import Callable

# Calls that a server gets at first, until it has shown what it takes.
_FIRST = 8
# What is left of a limit after a refusal or a failure, or whatever else.
_LEAST_LEFT = 0.5
# After calls that waited in the server: so much more than what it seems to work on at a time.
_HEADROOM = 1.25
_MOST_LEFT = 0.9
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

    def on_success(self, began_at: float, in_flight: int, worked_part: float = 1.0) -> None:
        """A call that began then was worked on for a part of its time, and has waited for the rest.

        So many were under way: by Little's law, the same part of them was worked on.
        """
        if in_flight < self._value * _USED_PART:
            return
        left = in_flight / self._value * worked_part * _HEADROOM
        if worked_part < 1 and left < 1:
            self._lower(began_at, min(max(left, _LEAST_LEFT), _MOST_LEFT))
        else:
            step = 1 if self._is_starting else 1 / self._value
            self._value = min(self._most, self._value + step)

    def on_failure(self, began_at: float) -> None:
        """A call that began then was refused, or failed."""
        self._lower(began_at, _LEAST_LEFT)

    def start_again(self) -> None:
        """Grow as fast as at first: the server was away, and may take as much as before."""
        self._is_starting = True

    def _lower(self, began_at: float, part: float) -> None:
        """What began before the limit was lowered tells of the limit before."""
        if began_at < self._lowered_at:
            return
        self._value = max(1.0, self._value * part)
        self._lowered_at = self._clock()
        self._is_starting = False
