"""Models of real shapes with random weights: `python benchmarks/synthetic_gguf.py 8b FILE`.

For measuring where no weights can be had: as fast, and as large in memory, as Llama models of that
size in Q4_0, and what they write has no meaning. Vocabulary and chat template are those of the
packaged SmolLM2. 1b takes a second and 0.7 GB, 8b half a minute and 4.3 GB.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine import packaged_model

SEED = 1
# Q4_0: 32 weights in a block, a scale of two bytes and four bits each, which stand for -8 to 7.
BLOCK_WEIGHTS, BLOCK_BYTES, SCALE_BYTES = 32, 18, 2
NIBBLE_DEVIATION = 4.6
CONTEXT_LENGTH = 8192


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama model; without an output layer of its own, the embeddings serve as one."""

    num_layers: int
    width: int
    inner_width: int
    num_heads: int
    num_kv_heads: int
    has_output: bool

    @property
    def kv_width(self) -> int:
        return self.width // self.num_heads * self.num_kv_heads


# Llama 3.2 1B and Llama 3.1 8B.
SHAPES = {
    "1b": Shape(16, 2048, 8192, 32, 8, has_output=False),
    "8b": Shape(32, 4096, 14336, 32, 8, has_output=True),
}


def write(path: Path, shape: Shape, vocabulary_of: Path) -> None:
    """Write the model; one tensor is in memory at a time."""
    source = GGUFReader(vocabulary_of)
    vocabulary_size = len(source.fields["tokenizer.ggml.tokens"].data)
    writer = GGUFWriter(path, "llama")
    writer.add_name("synthetic")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    writer.add_block_count(shape.num_layers)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner_width)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.num_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary_size)
    for name, field in source.fields.items():
        if name.startswith("tokenizer."):
            is_array = field.types[0] == GGUFValueType.ARRAY
            item_type = field.types[-1] if is_array else None
            writer.add_key_value(name, field.contents(), field.types[0], item_type)
    tensors = list(shapes_of_tensors(shape, vocabulary_size))
    for name, rows, width in tensors:
        if rows:
            size = rows * width // BLOCK_WEIGHTS * BLOCK_BYTES
            dtype = GGMLQuantizationType.Q4_0
            writer.add_tensor_info(name, (rows, width), np.dtype(np.float32), size, dtype)
        else:
            writer.add_tensor_info(name, (width,), np.dtype(np.float32), 4 * width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(SEED)
    for _, rows, width in tensors:
        writer.write_tensor_data(
            random_blocks(random, rows, width) if rows else np.ones(width, np.float32)
        )
    writer.close()


def shapes_of_tensors(shape: Shape, vocabulary_size: int) -> Iterator[tuple[str, int, int]]:
    """Name, rows and row width of each matrix; vectors have no rows."""
    yield "token_embd.weight", vocabulary_size, shape.width
    for number in range(shape.num_layers):
        block = f"blk.{number}"
        yield f"{block}.attn_norm.weight", 0, shape.width
        yield f"{block}.attn_q.weight", shape.width, shape.width
        yield f"{block}.attn_k.weight", shape.kv_width, shape.width
        yield f"{block}.attn_v.weight", shape.kv_width, shape.width
        yield f"{block}.attn_output.weight", shape.width, shape.width
        yield f"{block}.ffn_norm.weight", 0, shape.width
        yield f"{block}.ffn_gate.weight", shape.inner_width, shape.width
        yield f"{block}.ffn_up.weight", shape.inner_width, shape.width
        yield f"{block}.ffn_down.weight", shape.width, shape.inner_width
    yield "output_norm.weight", 0, shape.width
    if shape.has_output:
        yield "output.weight", vocabulary_size, shape.width


def random_blocks(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Weights of a deviation that keeps what goes through the layers at its size."""
    num_blocks = rows * width // BLOCK_WEIGHTS
    blocks = random.integers(0, 256, (num_blocks, BLOCK_BYTES), dtype=np.uint8)
    scale = np.array([1 / (NIBBLE_DEVIATION * width**0.5)], np.float16)
    blocks[:, :SCALE_BYTES] = scale.view(np.uint8)
    return blocks.reshape(rows, -1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    write(options.file, SHAPES[options.shape], packaged_model())
    print(f"{options.file}: {options.file.stat().st_size / 1e9:.1f} GB")
