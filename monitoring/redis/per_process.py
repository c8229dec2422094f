"""Objects that a fork must not share: connections, threads."""

import functools
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Decorates a function that makes an object: each process calls it once, and keeps the object.

    A forked child never touches the inherited object, not even to delete it: a thread of the parent
    may have held its lock at the fork, and the child would wait for ever.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []
        self._inherited: list[list[T]] = []
        # Reentrant: what is collected as garbage meanwhile may log, and so need the object.
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._begin_anew)
        functools.update_wrapper(self, make)

    def __call__(self) -> T:
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]

    @property
    def is_made(self) -> bool:
        """Whether this process has made its object."""
        return bool(self._made)

    def forget(self) -> None:
        """Have this process make another one; for tests."""
        self._made = []

    def _begin_anew(self) -> None:
        self._inherited.append(self._made)
        self._made = []
        self._lock = threading.RLock()
