"""A GGUF is described, or refused in words, without reading its weights."""

import struct
from pathlib import Path

import pytest

from inference.engine.errors import InvalidGGUFError
from inference.engine.gguf_header import read_header


def test_header_of_a_real_model(model_path: Path) -> None:
    header = read_header(model_path)
    assert header.architecture == "llama"
    assert header.num_parameters == 134_515_008
    assert header.quantization == "Q4_1"
    assert header.context_length == 8192
    assert header.num_layers == 30
    assert header.vocab_size == 49152
    assert header.sliding_window is None
    assert header.kv_bytes_per_token == 30 * 3 * 64 * 2 * 2
    assert header.size_bytes == model_path.stat().st_size
    assert 0 < header.size_bytes - header.weights_bytes < 3_000_000
    assert header.chat_template is not None
    assert "<|im_start|>" in header.chat_template


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(values: list[bytes], tensors: list[bytes] | None = None, version: int = 3) -> bytes:
    tensors = tensors or []
    start = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    return start + b"".join(values) + b"".join(tensors)


def text_value(key: str, text: str) -> bytes:
    return string(key) + struct.pack("<I", 8) + string(text)


def number(key: str, value: int) -> bytes:
    return string(key) + struct.pack("<II", 4, value)


def numbers(key: str, values: list[int]) -> bytes:
    return string(key) + struct.pack(f"<IIQ{len(values)}I", 9, 4, len(values), *values)


def tensor(shape: list[int], kind: int, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string("weight") + dimensions + struct.pack("<IQ", kind, offset)


def test_kv_heads_can_be_given_layer_by_layer(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(
        gguf(
            [
                text_value("general.architecture", "x"),
                number("x.block_count", 3),
                number("x.embedding_length", 64),
                number("x.attention.head_count", 4),
                numbers("x.attention.head_count_kv", [0, 1, 2]),
                number("x.attention.sliding_window", 512),
            ]
        )
        + bytes(32)
    )
    header = read_header(path)
    assert header.kv_bytes_per_token == 3 * (16 + 16) * 2
    assert header.sliding_window == 512
    assert (header.chat_template, header.quantization) == (None, "")


def test_quantization_falls_back_to_the_type_of_most_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf([], [tensor([32, 4], 8), tensor([2], 0, 160)]) + bytes(400))
    header = read_header(path)
    assert (header.quantization, header.num_parameters) == ("Q8_0", 130)
    assert header.weights_bytes == 4 * 34 + 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no GGUF file: it has 0 bytes"),
        (b"<html>" * 100, "no GGUF file: it starts with"),
        (gguf([], version=1) + bytes(100), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version"),
        (gguf([string("key") + struct.pack("<I", 77)]), "no value type 77"),
        (gguf([string("key") + struct.pack("<I", 8) + b"\xff" * 8]), "past the end"),
        (gguf([string("key") + struct.pack("<IIQ", 9, 8, 2**60)]), "past the end"),
        (gguf([string("key") + struct.pack("<IIQ", 9, 4, 2**60)]), "past the end"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "past the end"),
        (gguf([], [tensor([1024, 1024], 0)]) + bytes(1000), "cut short: it has"),
    ],
)
def test_bad_files_are_refused_in_words(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(InvalidGGUFError, match=message):
        read_header(path)


@pytest.mark.parametrize("kept", [30, 1_000, 1_500_000, 50_000_000])
def test_truncated_download_is_refused(tmp_path: Path, model_path: Path, kept: int) -> None:
    path = tmp_path / "model.gguf"
    with model_path.open("rb") as whole:
        path.write_bytes(whole.read(kept))
    with pytest.raises(InvalidGGUFError, match="cut short"):
        read_header(path)
