"""What the steps of a session cost, shared out among its attempts."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from inference.models import NO_COST, Cost

# So often at least, the energy is shared out among those that have used it.
_READ_SECONDS = 1.0


class CostMeter:
    """Time and energy of a session by request id: all of what its steps take is somebody's.

    The time of each step is shared out by the tokens computed in it, drafts included; the energy
    between two readings in proportion to that time.
    """

    def __init__(
        self,
        read_joules: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read_joules` of the device, which only grow; None where nobody can tell."""
        self._read_joules = read_joules
        self._clock = clock
        self._joules = read_joules()
        self._read_at = clock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._energy: defaultdict[str, float] = defaultdict(float)
        # Those since the last reading.
        self._unshared: defaultdict[str, float] = defaultdict(float)

    def add_step(self, seconds: float, num_tokens: Mapping[str, int]) -> None:
        """Share out a step that has computed so many tokens by request id."""
        total = sum(num_tokens.values())
        for request_id, num in num_tokens.items():
            share = seconds * num / total
            self._seconds[request_id] += share
            self._unshared[request_id] += share
        if self._clock() - self._read_at > _READ_SECONDS:
            self._share_energy()

    def take(self, request_id: str) -> Cost:
        """What a request has cost that has ended; it is forgotten then."""
        if request_id not in self._seconds:
            return NO_COST
        if self._unshared:
            self._share_energy()
        joules = None if self._joules is None else round(self._energy.pop(request_id, 0.0), 3)
        return Cost(round(self._seconds.pop(request_id), 6), joules)

    def _share_energy(self) -> None:
        before, self._joules = self._joules, self._read_joules()
        self._read_at = self._clock()
        if before is not None and self._joules is not None:
            joules_per_second = (self._joules - before) / sum(self._unshared.values())
            for request_id, seconds in self._unshared.items():
                self._energy[request_id] += seconds * joules_per_second
        self._unshared.clear()
