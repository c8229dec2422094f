"""What a GGUF file says about itself, read without its weights and without llama.cpp.

Source: docs/gguf.md of ggml. The gguf library gives the constants only: its reader decodes the
vocabulary entry by entry (2.3 s for a model of 135 M) and trusts the lengths it reads.
"""

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from inference.engine.errors import InvalidGGUFError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# By GGUF value type: uint8 int8 uint16 int16 uint32 int32 float32 bool, uint64 int64 float64.
_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_MAX_ARRAY = 1024

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What is known of a model before it is loaded. Sizes in bytes; 0 where the file is silent.

    `kv_bytes_per_token`: keys and values of one token in all layers, at 16 bits each.
    `sliding_window`: tokens some layers look back at most, None where all look back to the start.
    """

    architecture: str
    name: str
    num_parameters: int
    quantization: str
    context_length: int
    num_layers: int
    embedding_length: int
    vocab_size: int
    sliding_window: int | None
    kv_bytes_per_token: int
    chat_template: str | None
    size_bytes: int
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class _Tensors:
    num_parameters: int
    weights_bytes: int
    end: int
    bytes_by_type: dict[str, int]


def read_header(path: Path) -> GGUFHeader:
    """Read the metadata of one GGUF file (of a split model: of this part).

    Raises InvalidGGUFError for a file that is no GGUF, cut short, or of another version, and
    OSError for one that cannot be opened.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < 24:
            raise InvalidGGUFError(f"{path.name} is no GGUF file: it has {size} bytes.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, path.name)
            num_tensors, num_values = _read_start(cursor)
            values, lengths = _read_values(cursor, num_values)
            tensors = _read_tensors(cursor, num_tensors, values)
    if tensors.end > size:
        raise InvalidGGUFError(
            f"{path.name} is cut short: it has {size} bytes of {tensors.end}. Download it again."
        )
    return _to_header(values, lengths, tensors, size)


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
        """The vocabulary is hundreds of thousands of strings: this loop is what reading costs."""
        data, pos, end = self._data, self.pos, len(self._data) - 8
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if pos > end:
                pos = end + 9  # one byte past the end, for skip to refuse
                break
            pos += 8 + unpack(data, pos)[0]
        self.skip(pos - self.pos)


def _read_start(cursor: _Cursor) -> tuple[int, int]:
    """Number of tensors and of metadata values."""
    magic = struct.pack("<I", cursor.take_int("I"))
    if magic != _MAGIC:
        raise InvalidGGUFError(f"{cursor.name} is no GGUF file: it starts with {magic!r}.")
    version = cursor.take_int("I")
    if version not in _VERSIONS:
        raise InvalidGGUFError(
            f"{cursor.name} is GGUF version {version}, and versions 2 and 3 in little-endian order"
            " are supported: convert the model anew."
        )
    return cursor.take_int("Q"), cursor.take_int("Q")


def _read_values(cursor: _Cursor, count: int) -> tuple[dict[str, Value], dict[str, int]]:
    """The metadata, and the length of each array; long arrays are skipped."""
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
    return values, lengths


def _read_scalar(cursor: _Cursor, kind: int) -> Scalar:
    return cursor.take_string() if kind == _STRING else cursor.take(_format(cursor, kind))


def _format(cursor: _Cursor, kind: int) -> str:
    if kind not in _FORMATS:
        raise InvalidGGUFError(f"{cursor.name} is damaged: there is no value type {kind}.")
    return _FORMATS[kind]


def _read_tensors(cursor: _Cursor, count: int, values: dict[str, Value]) -> _Tensors:
    # gguf imports numpy and more, half a second that only a caller of this function pays.
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    known_types = {quantization.value for quantization in GGMLQuantizationType}
    num_parameters = weights_bytes = end = 0
    bytes_by_type: Counter[str] = Counter()
    for _ in range(count):
        cursor.take_string()
        num_elements = 1
        for _ in range(cursor.take_int("I")):
            num_elements *= cursor.take_int("Q")
        kind, offset = cursor.take_int("I"), cursor.take_int("Q")
        num_parameters += num_elements
        if kind in known_types:  # a type newer than the library has no known size
            quantization = GGMLQuantizationType(kind)
            block_size, block_bytes = GGML_QUANT_SIZES[quantization]
            num_bytes = num_elements // block_size * block_bytes
            bytes_by_type[quantization.name] += num_bytes
            weights_bytes += num_bytes
            end = max(end, offset + num_bytes)
    alignment = _int(values, "general.alignment") or 32
    start = -(-cursor.pos // alignment) * alignment
    return _Tensors(num_parameters, weights_bytes, start + end, bytes_by_type)


def _to_header(
    values: dict[str, Value], lengths: dict[str, int], tensors: _Tensors, size: int
) -> GGUFHeader:
    architecture = str(values.get("general.architecture", ""))
    template = values.get("tokenizer.chat_template")

    def number(key: str) -> int:
        return _int(values, f"{architecture}.{key}")

    return GGUFHeader(
        architecture=architecture,
        name=str(values.get("general.name", "")),
        num_parameters=tensors.num_parameters,
        quantization=_quantization(values, tensors),
        context_length=number("context_length"),
        num_layers=number("block_count"),
        embedding_length=number("embedding_length"),
        vocab_size=number("vocab_size") or lengths.get("tokenizer.ggml.tokens", 0),
        sliding_window=number("attention.sliding_window") or None,
        kv_bytes_per_token=_kv_bytes_per_token(values, architecture),
        chat_template=template if isinstance(template, str) else None,
        size_bytes=size,
        weights_bytes=tensors.weights_bytes,
    )


def _kv_bytes_per_token(values: dict[str, Value], architecture: str) -> int:
    """Some models give the number of KV heads layer by layer."""
    prefix = f"{architecture}.attention."
    num_layers = _int(values, f"{architecture}.block_count")
    num_heads = _int(values, prefix + "head_count") or 1
    per_head = _int(values, f"{architecture}.embedding_length") // num_heads
    kv_heads = values.get(prefix + "head_count_kv", num_heads)
    total = sum(map(int, kv_heads)) if isinstance(kv_heads, list) else int(kv_heads) * num_layers
    keys = _int(values, prefix + "key_length") or per_head
    return total * 2 * (keys + (_int(values, prefix + "value_length") or per_head))


def _quantization(values: dict[str, Value], tensors: _Tensors) -> str:
    """The file's own name for its mix, such as Q4_K_M; else the type most of its bytes have."""
    from gguf.constants import LlamaFileType

    file_type = _int(values, "general.file_type", default=-1)
    for known in LlamaFileType:
        if known.value == file_type:
            return known.name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return max(tensors.bytes_by_type, key=lambda name: tensors.bytes_by_type[name], default="")


def _int(values: dict[str, Value], key: str, default: int = 0) -> int:
    """A number of the metadata; of one given layer by layer, the greatest."""
    value = values.get(key, default)
    if isinstance(value, list):
        value = max(value, default=default)
    return int(value) if isinstance(value, int | float) else default
