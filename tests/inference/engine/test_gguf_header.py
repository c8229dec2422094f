"""A GGUF is described, or refused in words, without reading its weights."""

import struct
from pathlib import Path

import pytest

from inference.engine.errors import InvalidGGUFError
from inference.engine.gguf_header import GGUFHeader, read_header

Keys = dict[str, int | list[int]]

# Four layers with four heads of 16.
SHAPE: Keys = {
    "block_count": 4,
    "embedding_length": 64,
    "attention.head_count": 4,
}


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


def uint16(key: str, value: int) -> bytes:
    return string(key) + struct.pack("<IH", 2, value)


def numbers(key: str, values: list[int]) -> bytes:
    return string(key) + struct.pack(f"<IIQ{len(values)}I", 9, 4, len(values), *values)


def tensor(shape: list[int], kind: int, offset: int = 0, name: str = "weight") -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dimensions + struct.pack("<IQ", kind, offset)


LLAMA = text_value("general.architecture", "llama")
UNKNOWN = text_value("general.architecture", "unknwon")


def header_of(
    tmp_path: Path,
    architecture: str,
    keys: Keys,
    tensor_names: list[str] | None = None,
) -> GGUFHeader:
    """Of a file with these keys of the architecture, and with tensors of two floats each."""
    values = [text_value("general.architecture", architecture)]
    for name, value in keys.items():
        key = f"{architecture}.{name}"
        values.append(numbers(key, value) if isinstance(value, list) else number(key, value))
    tensors = [tensor([2], 0, name=name) for name in tensor_names or ["weight"]]
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(values, tensors) + bytes(64))
    return read_header(path)


def test_kv_heads_can_be_given_layer_by_layer(tmp_path: Path) -> None:
    keys = SHAPE | {"attention.head_count_kv": [0, 1, 2, 0], "attention.sliding_window": 512}
    header = header_of(tmp_path, "llama", keys)
    assert [layer.kv_bytes_per_token for layer in header.layers] == [0, 64, 128, 0]
    assert header.kv_bytes_per_token == 3 * (16 + 16) * 2
    assert header.sliding_window == 512
    assert (header.chat_template, header.quantization) == (None, "F32")


def test_length_of_keys_and_values_can_be_given(tmp_path: Path) -> None:
    keys = SHAPE | {"attention.key_length": 24, "attention.value_length": 8}
    assert header_of(tmp_path, "llama", keys).kv_bytes_per_token == 4 * 4 * (24 + 8) * 2


def test_latent_attention_keeps_no_values(tmp_path: Path) -> None:
    keys = SHAPE | {
        "attention.head_count_kv": 1,
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
    }
    assert header_of(tmp_path, "deepseek2", keys).kv_bytes_per_token == 4 * 576 * 2


@pytest.mark.parametrize("key", ["attention.shared_kv_layers", "nextn_predict_layers"])
def test_last_layers_may_keep_nothing(tmp_path: Path, key: str) -> None:
    header = header_of(tmp_path, "llama", SHAPE | {key: 3})
    assert [layer.kv_bytes_per_token for layer in header.layers] == [256, 0, 0, 0]


@pytest.mark.parametrize(
    ("architecture", "pattern", "sliding"),
    [
        ("gemma2", None, [1, 0, 1, 0]),
        ("gemma3", None, [1, 1, 1, 1]),
        ("smallthinker", None, [0, 1, 1, 1]),
        ("gemma3", 3, [1, 1, 0, 1]),
        ("gemma4", [0, 1, 1, 0], [0, 1, 1, 0]),
        ("phi3", None, [0, 0, 0, 0]),
    ],
)
def test_which_layers_have_a_sliding_window(
    tmp_path: Path, architecture: str, pattern: int | list[int] | None, sliding: list[int]
) -> None:
    keys = SHAPE | {"attention.sliding_window": 512}
    if pattern is not None:
        keys["attention.sliding_window_pattern"] = pattern
    header = header_of(tmp_path, architecture, keys)
    assert [layer.is_sliding for layer in header.layers] == list(map(bool, sliding))


def test_without_a_window_no_layer_slides(tmp_path: Path) -> None:
    header = header_of(tmp_path, "gemma3", SHAPE)
    assert not any(layer.is_sliding for layer in header.layers)


def test_recurrent_layers_keep_a_state_for_each_sequence(tmp_path: Path) -> None:
    keys: Keys = {"ssm.conv_kernel": 4, "ssm.inner_size": 100, "ssm.state_size": 10}
    names = ["blk.0.ssm_in.weight", "blk.1.attn_k.weight", "blk.2.ssm_in.weight"]
    names += ["blk.2.attn_k.weight"]
    first, second, third, fourth = header_of(tmp_path, "jamba", SHAPE | keys, names).layers
    state = (3 * 100 + 100 * 10) * 4
    assert (first.kv_bytes_per_token, first.state_bytes) == (0, state)
    assert (second.kv_bytes_per_token, second.state_bytes) == (256, 0)
    assert (third.kv_bytes_per_token, third.state_bytes) == (256, state)
    assert (fourth.kv_bytes_per_token, fourth.state_bytes) == (256, 0)


@pytest.mark.parametrize(
    ("keys", "name", "num_floats"),
    [
        ({"wkv.head_size": 16}, "time_mix_key.weight", 64 * (2 + 16)),
        ({"shortconv.l_cache": 3}, "shortconv.conv.weight", 64 * 2),
        ({"kda.head_dim": 16, "ssm.conv_kernel": 4}, "ssm_a", 64 * (3 * 3 + 16)),
    ],
)
def test_state_of_other_recurrent_families(
    tmp_path: Path, keys: Keys, name: str, num_floats: int
) -> None:
    header = header_of(tmp_path, "llama", SHAPE | keys, [f"blk.0.{name}"])
    assert header.layers[0].state_bytes == 4 * num_floats


def test_weights_are_told_apart_by_where_they_are_used(tmp_path: Path) -> None:
    names = [
        "token_embd.weight",
        "blk.1.attn_q.weight",
        "blk.1.ffn_up.weight",
        "output_norm.weight",
    ]
    header = header_of(tmp_path, "llama", SHAPE, names)
    assert [layer.weights_bytes for layer in header.layers] == [0, 16, 0, 0]
    assert (header.embedding_bytes, header.output_bytes, header.weights_bytes) == (8, 8, 32)
    assert header.ties_embeddings
    assert not header_of(tmp_path, "llama", SHAPE, [*names, "output.weight"]).ties_embeddings


def test_more_layers_than_llama_cpp_takes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidGGUFError, match="2000000000 layers"):
        header_of(tmp_path, "llama", SHAPE | {"block_count": 2_000_000_000})


def test_quantization_falls_back_to_the_type_of_most_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = [tensor([32, 4], 8), tensor([2], 0, 160)]
    path.write_bytes(gguf([LLAMA], tensors) + bytes(400))
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
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1), "damaged: it has 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 4097), "damaged: it has 1 tensors and 4097 values"),
        (gguf([LLAMA, number("general.alignment", 0)]) + bytes(99), "alignment is 0"),
        (gguf([LLAMA], [tensor(80_000 * [1], 0)]), "a tensor has 80000 dimensions"),
        (gguf([LLAMA], [tensor([2**50, 2**50], 0)]), "a tensor has 12676506002282294"),
        (gguf([LLAMA]) + bytes(99), "has no weights"),
        (gguf([LLAMA], [tensor([0], 0)]) + bytes(99), "has no weights"),
        (gguf([], [tensor([1], 0)]) + bytes(99), "architecture '', which llama.cpp"),
        (gguf([UNKNOWN], [tensor([1], 0)]) + bytes(99), "architecture 'unknwon', which llama.cpp"),
        (gguf([], [tensor([1024, 1024], 0)]) + bytes(1000), "cut short: it has"),
    ],
)
def test_bad_files_are_refused_in_words(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(InvalidGGUFError, match=message):
        read_header(path)


def test_numbers_that_no_model_has_are_none(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    endless = string("llama.block_count") + struct.pack("<If", 6, float("inf"))
    negative = string("llama.context_length") + struct.pack("<Ii", 5, -1)
    large = string("llama.embedding_length") + struct.pack("<IQ", 10, 2**63)
    path.write_bytes(gguf([LLAMA, endless, negative, large], [tensor([2], 0)]) + bytes(64))
    header = read_header(path)
    assert (header.layers, header.context_length, header.embedding_length) == ((), 0, 0)


def test_chat_template_of_megabytes_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    values = [LLAMA, text_value("tokenizer.chat_template", 200_000 * "x")]
    path.write_bytes(gguf(values, [tensor([2], 0)]) + bytes(64))
    assert read_header(path).chat_template is None


def test_texts_are_such_as_every_database_keeps(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    values = [LLAMA, text_value("tokenizer.chat_template", "a\0b")]
    path.write_bytes(gguf(values, [tensor([2], 0)]) + bytes(64))
    assert read_header(path).chat_template == "a\ufffdb"


def test_newest_architectures_are_known(tmp_path: Path) -> None:
    for architecture in ("qwen2", "llama4", "gpt-oss", "bert", "qwen4exp"):
        assert header_of(tmp_path, architecture, SHAPE).architecture == architecture


def part(number: int, tensors: list[bytes]) -> bytes:
    values = [uint16("split.no", number - 1), uint16("split.count", 2)]
    return gguf([LLAMA, *values] if number == 1 else values, tensors) + bytes(64)


def test_split_model_is_all_of_its_parts(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(part(1, [tensor([2], 0, name="blk.0.a")]))
    with pytest.raises(InvalidGGUFError, match=r"m-00002-of-00002\.gguf is missing: put all 2"):
        read_header(first)
    second.write_bytes(part(2, [tensor([4], 0, name="blk.1.a")]))
    header = read_header(first)
    assert (header.num_parameters, header.weights_bytes) == (6, 24)
    assert header.size_bytes == first.stat().st_size + second.stat().st_size
    with pytest.raises(InvalidGGUFError, match="give the first one"):
        read_header(second)
    second.write_bytes(part(2, [tensor([4000], 0, name="blk.1.a")]))
    with pytest.raises(InvalidGGUFError, match=r"m-00002-of-00002\.gguf is cut short"):
        read_header(first)


@pytest.mark.parametrize("kept", [30, 1_000, 1_500_000, 50_000_000])
def test_truncated_download_is_refused(tmp_path: Path, model_path: Path, kept: int) -> None:
    path = tmp_path / "model.gguf"
    with model_path.open("rb") as whole:
        path.write_bytes(whole.read(kept))
    with pytest.raises(InvalidGGUFError, match="cut short"):
        read_header(path)
