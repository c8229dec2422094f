"""Checks of what may hang: each in a thread of its own, and no more often than needed."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FRESH_SECONDS = 1.0
# A failed check is repeated sooner, so that a recovery is seen.
_FRESH_BAD_SECONDS = 0.2


class CachedCheck(Generic[T]):
    """A check that runs when it is asked for, once at a time, and not while its result is fresh.

    A check that hangs holds up one thread, however often it is asked for. A result that `is_well`
    is fresh for a second.
    """

    def __init__(
        self, name: str, check: Callable[[], T], is_well: Callable[[T], bool] = lambda _: True
    ) -> None:
        self._name = name
        self._check = check
        self._is_well = is_well
        self._lock = threading.Lock()
        self._has_ended: threading.Event | None = None
        self._started_at = self._ended_at = 0.0
        self._found: T | None = None

    def begin(self) -> None:
        """Start the check, unless it is running or its last result is fresh."""
        with self._lock:
            if self._has_ended is not None:
                is_well = self._found is not None and self._is_well(self._found)
                fresh_seconds = _FRESH_SECONDS if is_well else _FRESH_BAD_SECONDS
                age_seconds = time.monotonic() - self._ended_at
                if self.is_running or age_seconds <= fresh_seconds:
                    return
            self._has_ended = threading.Event()
            self._started_at = time.monotonic()
            run = threading.Thread(
                target=self._run, args=(self._has_ended,), name=f"check-{self._name}", daemon=True
            )
            run.start()

    def found(self, within_seconds: float) -> T | None:
        """What it has found since `begin`; None when it failed, or has taken longer by now."""
        assert self._has_ended is not None, "the check has not begun"
        left = self._started_at + within_seconds - time.monotonic()
        return self._found if self._has_ended.wait(max(0.0, left)) else None

    @property
    def is_running(self) -> bool:
        return self._has_ended is not None and not self._has_ended.is_set()

    @property
    def elapsed_ms(self) -> float:
        """How long it took, or has taken so far."""
        ended_at = time.monotonic() if self.is_running else self._ended_at
        return round((ended_at - self._started_at) * 1000, 1)

    def _run(self, has_ended: threading.Event) -> None:
        found = None
        try:
            found = self._check()
        except Exception:
            logger.exception("The check of %s failed", self._name)
        self._found, self._ended_at = found, time.monotonic()
        has_ended.set()
