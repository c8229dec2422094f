"""The metadata and the tensor list of a GGUF file, read without its weights and without llama.cpp.

Source: docs/gguf.md of ggml. The gguf library gives the constants only: its reader decodes the
vocabulary entry by entry (2.3 s for a model of 135 M) and trusts the lengths it reads.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from inference.engine.errors import InvalidGGUFError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# By GGUF value type: uint8 int8 uint16 int16 uint32 int32 float32 bool, uint64 int64 float64.
_FORMATS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_MAX_ARRAY = 1024

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]


@dataclass(frozen=True, slots=True)
class Metadata:
    """The file's keys and values; of arrays longer than 1,024 entries only the length."""

    values: dict[str, Value]
    lengths: dict[str, int]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str, default: int = 0) -> int:
        """A number; of one given layer by layer, the greatest."""
        value = self.values.get(key, default)
        if isinstance(value, list):
            return max(map(_to_int, value), default=default)
        return _to_int(value, default)

    def of_model(self, key: str, default: int = 0) -> int:
        """A number whose key starts with the architecture's name."""
        return self.number(f"{self.architecture}.{key}", default)

    def of_layers(self, key: str, num_layers: int, default: int = 0) -> list[int]:
        """Such a number for each layer, given once for all of them or layer by layer."""
        value = self.values.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, list):
            return [_to_int(value, default)] * num_layers
        return [_to_int(entry) for entry in value[:num_layers]] + [0] * (num_layers - len(value))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the file; no bytes where its type is newer than the gguf library."""

    name: str
    quantization: str
    num_elements: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GGUFFile:
    metadata: Metadata
    tensors: list[Tensor]
    size_bytes: int


def read_file(path: Path) -> GGUFFile:
    """Read one GGUF file (of a split model: this part).

    Raises InvalidGGUFError for a file that is no GGUF, cut short, or of another version, and
    OSError for one that cannot be opened.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < 24:
            raise InvalidGGUFError(f"{path.name} is no GGUF file: it has {size} bytes.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, path.name)
            magic = struct.pack("<I", cursor.take_int("I"))
            if magic != _MAGIC:
                raise InvalidGGUFError(f"{path.name} is no GGUF file: it starts with {magic!r}.")
            version = cursor.take_int("I")
            if version not in _VERSIONS:
                raise InvalidGGUFError(
                    f"{path.name} is GGUF version {version}, and versions 2 and 3 in little-endian"
                    " order are supported: convert the model anew."
                )
            num_tensors, num_values = cursor.take_int("Q"), cursor.take_int("Q")
            metadata = _read_metadata(cursor, num_values)
            tensors, end = _read_tensors(cursor, num_tensors)
            alignment = metadata.number("general.alignment") or 32
            start = -(-cursor.pos // alignment) * alignment
    if start + end > size:
        raise InvalidGGUFError(
            f"{path.name} is cut short: it has {size} bytes of {start + end}. Download it again."
        )
    return GGUFFile(metadata, tensors, size)


class _Cursor:
    """Reads little-endian values one after another; running past the end is an error in words."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data = data
        self.name = name
        self.pos = 0

    def take(self, code: str) -> int | float | bool:
        size = struct.calcsize("<" + code)
        self.skip(size)
        value: int | float | bool = struct.unpack_from("<" + code, self._data, self.pos - size)[0]
        return value

    def take_int(self, code: str) -> int:
        return int(self.take(code))

    def take_string(self) -> str:
        length = self.take_int("Q")
        self.skip(length)
        return self._data[self.pos - length : self.pos].decode(errors="replace")

    def skip(self, num_bytes: int) -> None:
        if num_bytes > len(self._data) - self.pos:
            raise InvalidGGUFError(
                f"{self.name} is cut short or damaged: its metadata goes past the end of the file."
            )
        self.pos += num_bytes

    def skip_strings(self, count: int) -> None:
        """A vocabulary has hundreds of thousands of strings: this loop takes most of the time."""
        data, pos, end = self._data, self.pos, len(self._data) - 8
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if pos > end:
                pos = end + 9  # one byte past the end, for skip to refuse
                break
            pos += 8 + unpack(data, pos)[0]
        self.skip(pos - self.pos)


def _read_metadata(cursor: _Cursor, count: int) -> Metadata:
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(count):
        key = cursor.take_string()
        kind = cursor.take_int("I")
        if kind != _ARRAY:
            values[key] = _read_scalar(cursor, kind)
            continue
        kind, lengths[key] = cursor.take_int("I"), cursor.take_int("Q")
        if kind == _STRING:
            cursor.skip_strings(lengths[key])
        elif lengths[key] > _MAX_ARRAY:
            cursor.skip(lengths[key] * struct.calcsize(_format(cursor, kind)))
        else:
            values[key] = [_read_scalar(cursor, kind) for _ in range(lengths[key])]
    return Metadata(values, lengths)


def _read_scalar(cursor: _Cursor, kind: int) -> Scalar:
    return cursor.take_string() if kind == _STRING else cursor.take(_format(cursor, kind))


def _format(cursor: _Cursor, kind: int) -> str:
    if kind not in _FORMATS:
        raise InvalidGGUFError(f"{cursor.name} is damaged: there is no value type {kind}.")
    return _FORMATS[kind]


def _read_tensors(cursor: _Cursor, count: int) -> tuple[list[Tensor], int]:
    """The tensors, and where the last one ends after the start of the data."""
    # gguf imports numpy and more, half a second that only a caller of this function pays.
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    known_types = {quantization.value for quantization in GGMLQuantizationType}
    tensors: list[Tensor] = []
    end = 0
    for _ in range(count):
        name = cursor.take_string()
        num_elements = 1
        for _ in range(cursor.take_int("I")):
            num_elements *= cursor.take_int("Q")
        kind, offset = cursor.take_int("I"), cursor.take_int("Q")
        if kind not in known_types:
            tensors.append(Tensor(name, "", num_elements, 0))
            continue
        quantization = GGMLQuantizationType(kind)
        block_size, block_bytes = GGML_QUANT_SIZES[quantization]
        num_bytes = num_elements // block_size * block_bytes
        tensors.append(Tensor(name, quantization.name, num_elements, num_bytes))
        end = max(end, offset + num_bytes)
    return tensors, end


def _to_int(value: Value, default: int = 0) -> int:
    return int(value) if isinstance(value, int | float) else default
