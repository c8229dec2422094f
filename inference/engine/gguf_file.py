"""The metadata and the tensor list of a GGUF file, read without its weights and without llama.cpp.

Source: docs/gguf.md of ggml. The gguf library gives the constants only: its reader decodes the
vocabulary entry by entry (2.3 s for a model of 135 M) and trusts the lengths it reads.
"""

import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from inference.engine.errors import InvalidGGUFError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# By GGUF value type: uint8 int8 uint16 int16 uint32 int32 float32 bool, uint64 int64 float64.
_FORMATS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_MAX_ARRAY = 1024
# Far more than any model has; a file with more would keep its reader busy, or fill its memory.
_MAX_VALUES = 4096
_MAX_TENSORS = 65_536
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_HEADER_BYTES = 64 * 1024 * 1024
_MAX_TEXT_BYTES = 128 * 1024
_MAX_NUMBER = 2**53

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]


@dataclass(frozen=True, slots=True)
class Metadata:
    """The file's keys and values, without texts of more than 128 KiB.

    Of arrays longer than 1,024 entries only the length.
    """

    values: dict[str, Value]
    lengths: dict[str, int]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str, default: int = 0) -> int:
        """A number from 0 to 2^53, else the default; of one given layer by layer, the greatest."""
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


def read_model(path: Path) -> GGUFFile:
    """Read a model, whose other files, if it is split, lie beside its first one.

    Raises InvalidGGUFError for a file that is no GGUF, cut short, damaged or of another version, or
    where a part is missing; and OSError for one that cannot be opened.
    """
    first = _read_file(path)
    num_parts = first.metadata.number("split.count")
    if num_parts <= 1:
        return first
    ending = f"-of-{num_parts:05}.gguf"
    stem = path.name.removesuffix(f"-00001{ending}")
    if stem == path.name:
        raise InvalidGGUFError(
            f"{path.name} is one of {num_parts} parts of a model: give the first one, whose name "
            f"ends with -00001{ending}, with the others beside it."
        )
    parts = [first]
    for number in range(2, num_parts + 1):
        part_path = path.with_name(f"{stem}-{number:05}{ending}")
        if not part_path.is_file():
            raise InvalidGGUFError(
                f"{part_path.name} is missing: put all {num_parts} parts of the model beside "
                f"{path.name}."
            )
        parts.append(_read_file(part_path))
    return replace(
        first,
        tensors=[tensor for part in parts for tensor in part.tensors],
        size_bytes=sum(part.size_bytes for part in parts),
    )


def _read_file(path: Path) -> GGUFFile:
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
            if num_tensors > _MAX_TENSORS or num_values > _MAX_VALUES:
                raise cursor.damage(f"it has {num_tensors} tensors and {num_values} values")
            metadata = _read_metadata(cursor, num_values)
            tensors, end = _read_tensors(cursor, num_tensors)
            alignment = metadata.number("general.alignment", 32)
            if alignment.bit_count() != 1:
                raise cursor.damage(f"its alignment is {alignment}")
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

    def take_many(self, code: str, count: int) -> list[Scalar]:
        values = struct.Struct(f"<{count}{code}")
        self.skip(values.size)
        return list(values.unpack_from(self._data, self.pos - values.size))

    def take_text(self) -> str:
        """Empty in place of one that is too long; no NUL, which databases refuse."""
        length = self.take_int("Q")
        self.skip(length)
        kept = length if length <= _MAX_TEXT_BYTES else 0
        text = self._data[self.pos - kept : self.pos].decode(errors="replace")
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}")

    def damage(self, what: str) -> InvalidGGUFError:
        return InvalidGGUFError(f"{self.name} is damaged: {what}. Download it again.")

    def skip(self, num_bytes: int) -> None:
        if num_bytes > len(self._data) - self.pos:
            raise InvalidGGUFError(
                f"{self.name} is cut short or damaged: its metadata goes past the end of the file."
            )
        self.pos += num_bytes
        if self.pos > _MAX_HEADER_BYTES:
            raise self.damage(f"its header has more than {_MAX_HEADER_BYTES} bytes")

    def skip_strings(self, count: int) -> None:
        """A vocabulary has hundreds of thousands of strings: this loop takes most of the time."""
        data, pos, end = self._data, self.pos, min(len(self._data), _MAX_HEADER_BYTES) - 8
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
        key, kind = cursor.take_text(), cursor.take_int("I")
        is_array = kind == _ARRAY
        if is_array:
            kind, lengths[key] = cursor.take_int("I"), cursor.take_int("Q")
        if kind != _STRING and kind not in _FORMATS:
            raise cursor.damage(f"there is no value type {kind}")
        if kind == _STRING and is_array:
            cursor.skip_strings(lengths[key])
        elif kind == _STRING:
            values[key] = cursor.take_text()
        elif not is_array:
            values[key] = cursor.take(_FORMATS[kind])
        elif lengths[key] > _MAX_ARRAY:
            cursor.skip(lengths[key] * struct.calcsize(_FORMATS[kind]))
        else:
            values[key] = cursor.take_many(_FORMATS[kind], lengths[key])
    return Metadata(values, lengths)


def _read_tensors(cursor: _Cursor, count: int) -> tuple[list[Tensor], int]:
    """The tensors, and where the last one ends after the start of the data."""
    # gguf imports numpy and more, half a second that only a caller of this function pays.
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    known_types = {quantization.value for quantization in GGMLQuantizationType}
    tensors: list[Tensor] = []
    end = 0
    for _ in range(count):
        name, num_dimensions = cursor.take_text(), cursor.take_int("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise cursor.damage(f"a tensor has {num_dimensions} dimensions")
        num_elements = 1
        for _ in range(num_dimensions):
            num_elements *= cursor.take_int("Q")
        if num_elements > _MAX_NUMBER:
            raise cursor.damage(f"a tensor has {num_elements} elements")
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
    """Numbers that no model has, infinite ones among them, are none."""
    if isinstance(value, int | float) and 0 <= value <= _MAX_NUMBER:
        return int(value)
    return default
