"""What a model is estimated to need, against what llama.cpp says that it takes."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from inference.engine.gguf_header import GGUFHeader, read_header
from inference.engine.llama_runner import LlamaRunner
from inference.engine.memory_estimate import (
    VOCABULARY_BYTES_PER_TOKEN,
    MemoryEstimate,
    estimate,
)
from inference.engine.runner import LoadParams

MB = 1024 * 1024
# Not CPU_REPACK: these weights are in the file's mapping too, whose pages nobody reads again.
_BUFFER = re.compile(r"(?<!CPU_REPACK) (model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")


def estimate_of(params: LoadParams) -> MemoryEstimate:
    return estimate(
        read_header(params.path),
        context_window=params.context_window,
        max_num_seqs=params.max_num_seqs,
        num_cache_cells=params.num_cache_cells,
        num_batch_tokens=params.num_batch_tokens,
        gpu_layers=0,
        max_draft_tokens=params.max_draft_tokens,
    )


def reported_mb(params: LoadParams, caplog: pytest.LogCaptureFixture) -> dict[str, float]:
    """The buffers by kind, from llama.cpp's own log of a load."""
    with caplog.at_level(logging.DEBUG, logger="inference.engine.llama_cpp"):
        LlamaRunner(replace(params, num_threads=1)).close()
    sizes: dict[str, float] = {}
    for kind, size in _BUFFER.findall(caplog.text):
        sizes[kind] = sizes.get(kind, 0) + float(size)
    return sizes


def untold_mb(params: LoadParams) -> float:
    """What llama.cpp does not tell: the constraints' vocabulary, and logits of drafts.

    It makes room for those with the first batch that has some.
    """
    bytes_per_token = VOCABULARY_BYTES_PER_TOKEN + 4 * params.max_draft_tokens
    return read_header(params.path).vocab_size * bytes_per_token / MB


def assert_as_reported(params: LoadParams, caplog: pytest.LogCaptureFixture) -> None:
    reported = reported_mb(params, caplog)
    needed, untold = estimate_of(params), untold_mb(params)
    cache = reported.get("KV", 0) + reported.get("RS", 0)
    compute = reported["compute"] + reported["output"]
    assert needed.weights_bytes / MB == pytest.approx(reported["model"], rel=0.01)
    assert needed.kv_cache_bytes / MB == pytest.approx(cache, rel=0.01)
    assert needed.compute_bytes / MB - untold == pytest.approx(compute, rel=0.1)
    total_mb = needed.total_bytes / MB - untold
    assert total_mb == pytest.approx(sum(reported.values()), rel=0.02)


@pytest.mark.parametrize(
    ("context_window", "max_num_seqs", "num_batch_tokens", "num_cache_cells"),
    [
        (64, 1, 32, None),
        (256, 4, 128, None),
        (300, 2, 512, None),
        (1024, 3, 64, None),
        (4096, 1, 512, None),
        (1024, 4, 128, 1000),
        (256, 2, 128, 100_000),
    ],
)
def test_plain_model_takes_what_was_estimated(
    model_path: Path,
    caplog: pytest.LogCaptureFixture,
    context_window: int,
    max_num_seqs: int,
    num_batch_tokens: int,
    num_cache_cells: int | None,
) -> None:
    params = LoadParams(
        path=model_path,
        context_window=context_window,
        max_num_seqs=max_num_seqs,
        num_batch_tokens=num_batch_tokens,
        num_cache_cells=num_cache_cells,
    )
    assert_as_reported(params, caplog)


@pytest.mark.parametrize("num_batch_tokens", [16, 512])
def test_logits_of_drafts_take_what_was_estimated(
    model_path: Path, caplog: pytest.LogCaptureFixture, num_batch_tokens: int
) -> None:
    params = LoadParams(
        path=model_path,
        context_window=512,
        max_num_seqs=8,
        num_batch_tokens=num_batch_tokens,
        max_draft_tokens=16,
    )
    assert_as_reported(params, caplog)


@pytest.mark.parametrize(
    ("context_window", "max_num_seqs", "num_batch_tokens", "num_cache_cells"),
    [(2048, 2, 64, None), (512, 1, 512, None), (2048, 4, 64, 3000)],
)
def test_layers_with_a_sliding_window_hold_the_window_alone(
    gemma_path: Path,
    caplog: pytest.LogCaptureFixture,
    context_window: int,
    max_num_seqs: int,
    num_batch_tokens: int,
    num_cache_cells: int | None,
) -> None:
    params = LoadParams(
        path=gemma_path,
        context_window=context_window,
        max_num_seqs=max_num_seqs,
        num_batch_tokens=num_batch_tokens,
        num_cache_cells=num_cache_cells,
    )
    assert_as_reported(params, caplog)


@pytest.mark.parametrize("max_num_seqs", [1, 4])
def test_recurrent_model_has_a_state_for_each_sequence(
    mamba_path: Path, caplog: pytest.LogCaptureFixture, max_num_seqs: int
) -> None:
    params = LoadParams(
        path=mamba_path, context_window=128, max_num_seqs=max_num_seqs, num_batch_tokens=64
    )
    reported = reported_mb(params, caplog)
    needed = estimate_of(params)
    assert "KV" not in reported
    # llama.cpp rounds to hundredths of a megabyte, of which this model has few.
    assert needed.kv_cache_bytes / MB == pytest.approx(reported["RS"], abs=0.006)
    total_mb = needed.total_bytes / MB - untold_mb(params)
    assert total_mb == pytest.approx(sum(reported.values()), abs=0.1)


def test_everything_on_the_gpu_but_the_embeddings_and_inputs(model_path: Path) -> None:
    header = read_header(model_path)
    needed = on_gpu(header, gpu_layers=-1)
    on_cpu = on_gpu(header, gpu_layers=0)
    assert (on_cpu.device_bytes, on_cpu.host_bytes) == (0, on_cpu.total_bytes)
    # SmolLM2's embeddings serve as its output too: the GPU gets a copy of its own.
    assert header.ties_embeddings
    assert needed.weights_bytes == header.weights_bytes + header.embedding_bytes
    assert needed.kv_cache_bytes == on_cpu.kv_cache_bytes
    assert needed.device_bytes > header.weights_bytes + needed.kv_cache_bytes
    host_bytes = needed.host_bytes - header.vocab_size * VOCABULARY_BYTES_PER_TOKEN
    assert header.embedding_bytes < host_bytes < 1.2 * header.embedding_bytes


def test_layers_on_the_gpu_are_counted_from_the_end_with_the_output_first(
    model_path: Path,
) -> None:
    header = read_header(model_path)
    last, before_last = header.layers[-1], header.layers[-2]
    shares = [on_gpu(header, gpu_layers=count).device_bytes for count in (1, 2, 3)]
    cache = 2 * 1024 * last.kv_bytes_per_token
    assert shares[1] - shares[0] == last.weights_bytes + cache
    assert shares[2] - shares[1] == before_last.weights_bytes + cache
    all_layers = on_gpu(header, gpu_layers=header.num_layers + 1)
    assert all_layers == on_gpu(header, gpu_layers=-1) == on_gpu(header, gpu_layers=10_000)


def on_gpu(header: GGUFHeader, gpu_layers: int) -> MemoryEstimate:
    return estimate(
        header,
        context_window=1024,
        max_num_seqs=2,
        num_cache_cells=None,
        num_batch_tokens=128,
        gpu_layers=gpu_layers,
    )


def test_window_of_the_model_counts_where_none_is_given(model_path: Path) -> None:
    header = read_header(model_path)

    def kv_cache_bytes(context_window: int) -> int:
        return estimate(
            header,
            context_window=context_window,
            max_num_seqs=1,
            num_cache_cells=None,
            num_batch_tokens=128,
            gpu_layers=0,
        ).kv_cache_bytes

    assert kv_cache_bytes(0) == kv_cache_bytes(header.context_length)
