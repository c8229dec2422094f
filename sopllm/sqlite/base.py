"""SQLite for several processes that write: each write transaction first takes a file lock.

SQLite itself lets a writer that finds the database locked sleep and try again, up to 100 ms at a
time: with a web process and a worker of 32 threads that costs nine tenths of the throughput. The
kernel wakes the next holder of a file lock at once, and frees the lock of a process that dies.
"""

import fcntl
import os
from typing import Any

from django.db.backends.sqlite3 import base

# The stubs leave out the hooks for backends, which Django's own documentation does not name.
_Base: Any = base.DatabaseWrapper


class DatabaseWrapper(_Base):  # type: ignore[misc]
    """One connection, with its own descriptor of the lock file beside the database."""

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
        path = f"{self.settings_dict['NAME']}-lock"
        self._lock_descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_descriptor, fcntl.LOCK_EX)

    def _unlock(self) -> None:
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None
