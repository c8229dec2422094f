"""How long a task will run, from those that its model has ended before."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# So many of the ended tasks that are most alike tell how long one takes.
MAX_ALIKE = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """An ended task: the characters of its request, and what it took.

    `prefill_seconds` until the first of `num_tokens`, `seconds_per_token` for each other one.
    `was_cut`: whether it reached its own max_tokens.
    """

    size: int
    num_tokens: int
    prefill_seconds: float
    seconds_per_token: float
    was_cut: bool = False

    def seconds(self, size: int, max_tokens: int) -> float:
        """How long a task of that size would take that goes as this one did."""
        num_tokens = min(self.num_tokens, max_tokens)
        if self.was_cut and max_tokens > self.num_tokens:
            num_tokens = max_tokens
        prefill = self.prefill_seconds * min(4.0, max(0.25, size / max(1, self.size)))
        return prefill + max(0, num_tokens - 1) * self.seconds_per_token


def durations(samples: Sequence[Sample], size: int, max_tokens: int) -> list[float]:
    """The seconds that a task may run, sorted, each as likely; none where nothing is known.

    `samples`: in the order of their sizes; those nearest to the task's count.
    """
    place = bisect_right(samples, size, key=lambda sample: sample.size)
    near = samples[max(0, place - MAX_ALIKE) : place + MAX_ALIKE]
    alike = sorted(near, key=lambda sample: abs(sample.size - size))[:MAX_ALIKE]
    return sorted(sample.seconds(size, max_tokens) for sample in alike)


def remaining(seconds: Sequence[float], elapsed: float) -> list[float]:
    """Those of sorted durations that are left to a task that has run for so long."""
    left = [each - elapsed for each in seconds[bisect_left(seconds, elapsed) :]]
    return left or [0.1 * elapsed]


def quantile(values: Sequence[float], share: float) -> float:
    """What so large a share of further values will be below, as far as a few sorted ones tell.

    The next value is as likely to come before, between or after n known ones: so the first of them
    has 1 / (n + 1) below it.
    """
    place = min(max(share * (len(values) + 1) - 1, 0), len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])
