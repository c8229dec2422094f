"""GGUF models in the embedding mode of llama.cpp."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings

from inference.embeddings.encoders.base import Encoder, Vectors, is_cpu
from inference.errors import ErrorCode, InferenceError

_ALL_LAYERS = -1


class GGUFEncoder(Encoder):
    """A model in memory. Vectors are pooled as the file says, by default to the mean."""

    def __init__(self, path: Path, config: dict[str, Any], max_tokens: int) -> None:
        """Raises ValueError or RuntimeError with llama.cpp's reason."""
        # llama_cpp takes a second to import.
        import llama_cpp

        pooling = config.get("pooling")
        wanted = f"LLAMA_POOLING_TYPE_{pooling.upper() if pooling else 'UNSPECIFIED'}"
        model = load(llama_cpp, path, max_tokens, getattr(llama_cpp, wanted))
        if model.pooling_type() == llama_cpp.LLAMA_POOLING_TYPE_NONE:
            model.close()
            model = load(llama_cpp, path, max_tokens, llama_cpp.LLAMA_POOLING_TYPE_MEAN)
        self._model = model
        # llama.cpp computes one batch at a time, with all cores.
        self._computing = threading.Lock()
        self.dimensions = min(config.get("dimensions", model.n_embd()), model.n_embd())
        self.max_tokens = max_tokens
        self.prompts = dict(config.get("prompts", {}))

    def count_tokens(self, texts: list[str], prompt: str) -> list[int]:
        return [len(self._model.tokenize((prompt + text).encode())) for text in texts]

    def encode(self, texts: list[str], prompt: str) -> Vectors:
        try:
            with self._computing:
                rows = self._model.embed([prompt + text for text in texts], truncate=True)
        except RuntimeError as error:
            message = f"llama.cpp could not compute a batch: {error}"
            raise InferenceError(message, ErrorCode.PROVIDER_ERROR, retryable=True) from error
        return np.asarray(rows, dtype=np.float32)[:, : self.dimensions]


def load(llama_cpp: Any, path: Path, max_tokens: int, pooling_type: int) -> Any:
    """A model for texts of up to `max_tokens`. Raises ValueError or RuntimeError."""
    return llama_cpp.Llama(
        str(path),
        embedding=True,
        pooling_type=pooling_type,
        n_ctx=max_tokens,
        # Bidirectional models need a whole text in one batch.
        n_batch=max_tokens,
        n_ubatch=max_tokens,
        n_gpu_layers=0 if is_cpu() else _ALL_LAYERS,
        n_threads_batch=settings.N_THREADS or None,
        verbose=False,
    )
