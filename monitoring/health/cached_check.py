"""Looking at something that may hang: in a thread of its own, and no more often than needed."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FRESH_SECONDS = 1.0
# What was not well is looked at again soon, so that its return is seen.
_FRESH_BAD_SECONDS = 0.2


class Look(Generic[T]):
    """One look, under way or done."""

    def __init__(self, name: str, look: Callable[[], T]) -> None:
        self._name = name
        self._look = look
        self._started_at = time.monotonic()
        self._ended_at: float | None = None
        self._result: Future[T | None] = Future()
        threading.Thread(target=self._run, name=f"look-{name}", daemon=True).start()

    def found(self, within_seconds: float) -> T | None:
        """What was seen; None when the look failed, or has taken longer than that by now."""
        left = self._started_at + within_seconds - time.monotonic()
        try:
            return self._result.result(max(0.0, left))
        except NotYet:
            return None

    @property
    def has_ended(self) -> bool:
        return self._ended_at is not None

    @property
    def elapsed_ms(self) -> float:
        """How long it took, or has taken so far."""
        seconds = (self._ended_at or time.monotonic()) - self._started_at
        return round(seconds * 1000, 1)

    @property
    def age_seconds(self) -> float:
        """Since it ended; 0 before."""
        return 0.0 if self._ended_at is None else time.monotonic() - self._ended_at

    def _run(self) -> None:
        found = None
        try:
            found = self._look()
        except Exception:
            logger.exception("The look at %s failed", self._name)
        self._ended_at = time.monotonic()
        self._result.set_result(found)


class Looker(Generic[T]):
    """Looks when it is asked, at most once at a time, and not again while the last look is fresh.

    So one that hangs holds up one thread, however often it is asked for meanwhile. What `is_well`
    counts as fresh for a second.
    """

    def __init__(
        self, name: str, look: Callable[[], T], is_well: Callable[[T], bool] = lambda _: True
    ) -> None:
        self._name = name
        self._look = look
        self._is_well = is_well
        self._lock = threading.Lock()
        self._last: Look[T] | None = None

    def begin(self) -> Look[T]:
        """The look that is under way or fresh, or a new one."""
        with self._lock:
            if self._last is None or self._is_stale(self._last):
                self._last = Look(self._name, self._look)
            return self._last

    def _is_stale(self, look: Look[T]) -> bool:
        if not look.has_ended:
            return False
        found = look.found(0)
        is_well = found is not None and self._is_well(found)
        return look.age_seconds > (_FRESH_SECONDS if is_well else _FRESH_BAD_SECONDS)
