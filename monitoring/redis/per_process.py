"""What neither survives a fork nor may be shared over one: connections, threads."""

import functools
import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Decorates a function that makes an object: each process makes its own, and keeps it.

    A forked child never touches the inherited one, not even to delete it: a thread of the parent
    may have held its lock at the fork, and the child would wait for ever. Threads that come first
    at once may each make one, but all take the same.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[int, T] = {}
        functools.update_wrapper(self, make)

    def __call__(self) -> T:
        pid = os.getpid()
        if pid not in self._made:
            self._made.setdefault(pid, self._make())
        return self._made[pid]

    def forget(self) -> None:
        """Have this process make another one; for tests."""
        self._made.pop(os.getpid(), None)
