"""SQLite for several processes that write: each write transaction first takes a file lock.

SQLite itself lets a writer that finds the database locked sleep and try again, up to 100 ms at a
time: with a web process and a worker of 32 threads that costs nine tenths of the throughput. The
kernel wakes the next waiter of a file lock at once, and releases the lock of a process that dies.
"""

import fcntl
import os
import threading
from typing import Any

from django.db.backends.sqlite3 import base

# Only one thread of a process waits for the file lock; otherwise the web process would wait until
# all threads of a worker had their turns. A forked child gets a new lock, and descriptors of its
# own: an inherited one would hold the parent's lock after its death.
_one_thread = threading.Lock()
_descriptors: dict[str, int] = {}


def _begin_anew() -> None:
    global _one_thread
    _one_thread = threading.Lock()
    for descriptor in _descriptors.values():
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_begin_anew)

# The stubs leave out the hooks for backends, which Django does not document.
_Base: Any = base.DatabaseWrapper


class DatabaseWrapper(_Base):  # type: ignore[misc]
    """One connection; while it may write, the process has the lock of the file beside the database.

    The file stays open: to open it takes longer than to lock it.
    """

    _lock_descriptor: int | None = None

    def _start_transaction_under_autocommit(self) -> None:
        self._lock()
        try:
            super()._start_transaction_under_autocommit()
        except BaseException:
            self._unlock()
            raise

    def _commit(self) -> None:
        try:
            super()._commit()
        finally:
            self._unlock()

    def _rollback(self) -> None:
        try:
            super()._rollback()
        finally:
            self._unlock()

    def _close(self) -> None:
        try:
            super()._close()
        finally:
            self._unlock()

    def _lock(self) -> None:
        if self.is_in_memory_db() or self._lock_descriptor is not None:
            return
        _one_thread.acquire()
        try:
            path = f"{self.settings_dict['NAME']}-lock"
            if path not in _descriptors:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                _descriptors[path] = os.open(path, flags, 0o600)
            descriptor = _descriptors[path]
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            _one_thread.release()
            raise
        self._lock_descriptor = descriptor

    def _unlock(self) -> None:
        descriptor, self._lock_descriptor = self._lock_descriptor, None
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            _one_thread.release()
