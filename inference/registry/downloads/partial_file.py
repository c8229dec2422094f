"""A file of which a part has arrived."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

_READ_BYTES = 4 * 1024 * 1024


class FileBusyError(Exception):
    """The download of another model, with the same file, writes it."""


def read_chunks(file: BinaryIO, check: Callable[[], None]) -> Iterator[bytes]:
    """A large file from where it is to its end; `check` is called before each, and may raise."""
    while chunk := file.read(_READ_BYTES):
        check()
        yield chunk


class PartialFile:
    """Grows at its end, and hashes what it has. One process at a time has it open.

    The operating system releases the lock when the process dies, even by kill -9.
    """

    def __init__(self, path: Path) -> None:
        """Raises FileBusyError, and OSError as `open` does."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that had it until now may have moved or removed it.
            is_ours = self._is_in_place()
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            self._file.close()
            raise FileBusyError
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Closing writes what is buffered, for which a full disk has no room.
        with contextlib.suppress(OSError):
            self._file.close()

    @property
    def size_on_disk(self) -> int:
        """Including bytes from before that are not read yet."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def read_existing(self, check: Callable[[], None]) -> None:
        """Hash what is there from before; `check` is called now and then, and may raise."""
        self._file.seek(0)
        for chunk in read_chunks(self._file, check):
            self._hash.update(chunk)
            self.size += len(chunk)

    def append(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """Drop all bytes that have arrived."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def discard(self) -> None:
        """Remove the file, unless another one has taken its place."""
        if self._is_in_place():
            self.path.unlink(missing_ok=True)

    def move_to(self, target: Path) -> None:
        """Put the complete file in place. Raises OSError, also when it was removed meanwhile."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.path.rename(target)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False
