"""Saved states in a folder: what one process has computed, the next need not compute again.

A file is there whole or not at all, and nothing but its owner can read it. One that is broken, or
of another version, counts as not there, and is removed.
"""

import logging
import math
import os
import shutil
import struct
import time
import zlib
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from inference.engine.kv_cache import common_prefix_length
from inference.engine.saved_state import SavedState

logger = logging.getLogger(__name__)

_MAGIC = b"SOPLLMKV1"
# Magic, bytes of the label, tokens, deterministic ones, bytes of the data, checksum.
_SIZES = struct.Struct("<9sIIIQI")
_SUFFIX, _UNFINISHED = ".kv", ".part"
_MIN_FREE_BYTES = 2**30
# What a process has not finished by then, it has not survived.
_UNFINISHED_SECONDS = 600


@dataclass(frozen=True, slots=True)
class _Head:
    label: str
    tokens: list[int]
    num_deterministic_tokens: int
    num_data_bytes: int
    checksum: int


class StateFiles:
    """By name, `max_bytes` together at most; the least recently used one makes room."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def write(self, name: str, label: str, state: SavedState) -> int:
        """Replace the file of that name; return its size, 0 where there is no room for it.

        `label` is what `labels` returns.
        """
        encoded, tokens = label.encode(), _packed(state.tokens)
        sizes = _SIZES.pack(
            _MAGIC,
            len(encoded),
            len(state.tokens),
            state.num_deterministic_tokens,
            len(state.data),
            zlib.crc32(state.data, zlib.crc32(tokens, zlib.crc32(encoded))),
        )
        num_bytes = len(sizes) + len(encoded) + len(tokens) + len(state.data)
        unfinished = self._folder / f"{name}.{os.getpid()}{_UNFINISHED}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._make_room(name, num_bytes):
                return 0
            descriptor = os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.writelines((sizes, encoded, tokens, state.data))
            unfinished.replace(self._path(name))
        except OSError as error:
            logger.warning("A KV cache was not kept in %s: %s", self._folder, error)
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            return 0
        return num_bytes

    def read(self, name: str, prompt_tokens: list[int], min_tokens: int) -> SavedState | None:
        """The state of that name; None unless a prompt begins with so many of its tokens."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                head = _read_head(file)
                if common_prefix_length(head.tokens, prompt_tokens) < max(min_tokens, 1):
                    return None
                data = _read_data(file, head)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, MemoryError) as error:
            logger.warning("The kept KV cache %s is not used, and removed: %s", path.name, error)
            self.remove(name)
            return None
        return SavedState(head.tokens, head.num_deterministic_tokens, data)

    def num_known(self, name: str, tokens: Sequence[int]) -> int:
        """With how many of the tokens the state of that name begins; 0 without one."""
        try:
            with self._path(name).open("rb") as file:
                return common_prefix_length(_read_head(file).tokens, tokens)
        except (OSError, ValueError):
            return 0

    def unused_seconds(self, name: str) -> float:
        """How long ago it was read or written; infinity where it is not there."""
        try:
            return time.time() - self._path(name).stat().st_mtime
        except OSError:
            return math.inf

    def labels(self) -> dict[str, str]:
        """The label of each file by its name; broken files are removed."""
        labels: dict[str, str] = {}
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                with path.open("rb") as file:
                    labels[path.stem] = _read_head(file).label
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                logger.warning("The kept KV cache %s is broken, and removed: %s", path.name, error)
                self.remove(path.stem)
        return labels

    def remove(self, name: str) -> None:
        with suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _make_room(self, name: str, num_bytes: int) -> bool:
        """Remove what other processes have left unfinished, then the least recently used files."""
        if num_bytes > self._max_bytes:
            return False
        files: list[tuple[int, int, Path]] = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                found = path.stat()
                is_old = time.time() - found.st_mtime > _UNFINISHED_SECONDS
                if path.suffix == _UNFINISHED and is_old:
                    path.unlink()
                elif path != self._path(name):
                    files.append((found.st_mtime_ns, found.st_size, path))
        total = num_bytes + sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return shutil.disk_usage(self._folder).free - num_bytes >= _MIN_FREE_BYTES


def _packed(tokens: list[int]) -> bytes:
    return array("i", tokens).tobytes()


def _read_head(file: BinaryIO) -> _Head:
    """Raises ValueError for what is no such file."""
    start = file.read(_SIZES.size)
    if len(start) < _SIZES.size:
        raise ValueError("it is cut off")
    magic, label_bytes, num_tokens, num_deterministic, data_bytes, checksum = _SIZES.unpack(start)
    if magic != _MAGIC:
        raise ValueError("it is of another version")
    label, tokens = file.read(label_bytes), array("i")
    tokens.frombytes(file.read(tokens.itemsize * num_tokens))
    if len(tokens) < num_tokens:
        raise ValueError("it is cut off")
    return _Head(label.decode(), tokens.tolist(), num_deterministic, data_bytes, checksum)


def _read_data(file: BinaryIO, head: _Head) -> memoryview:
    """Raises ValueError unless all is there as it was written."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    if left != head.num_data_bytes:
        raise ValueError("its size is another one")
    data = memoryview(bytearray(left))
    file.readinto(data)  # type: ignore[attr-defined]
    checksum = zlib.crc32(_packed(head.tokens), zlib.crc32(head.label.encode()))
    if zlib.crc32(data, checksum) != head.checksum:
        raise ValueError("its checksum is another one")
    return data
