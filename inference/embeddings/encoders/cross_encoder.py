"""Cross-encoders of the sentence-transformers library: how well a text answers a query."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings

from inference.embeddings.encoders.base import Encoder, Vectors
from inference.embeddings.encoders.sentence_transformers import library
from inference.errors import ErrorCode, InferenceError


class CrossEncoder(Encoder):
    """A model in memory; the query takes the place of the prompt, and a vector is one score."""

    dimensions = 1

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Raises OSError, ValueError or RuntimeError with the library's reason."""
        self._model = library().CrossEncoder(
            str(folder),
            device=settings.EMBEDDING_DEVICE,
            max_length=config.get("max_seq_length"),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        if (num_labels := self._model.num_labels) != 1:
            raise ValueError(f"It gives {num_labels} scores: one that ranks gives one.")
        # As those of encoders: texts are counted beyond the window.
        self._counting_tokenizer = copy.deepcopy(self._model.tokenizer)
        # Tokenizers without a limit say so by a very large number.
        window = self._model.max_seq_length
        self.max_tokens = window if window and window < 10**9 else None
        self.prompts = {}
        # The first call sets the tokenizers' windows, before there are several threads.
        self.count_tokens(["a"], "a")
        self.encode(["a " * (self.max_tokens or 1)], "a")

    def count_tokens(self, texts: list[str], prompt: str) -> list[int]:
        tokens = self._counting_tokenizer([prompt] * len(texts), texts, truncation=False)
        return [len(ids) for ids in tokens["input_ids"]]

    def encode(self, texts: list[str], prompt: str) -> Vectors:
        pairs = [(prompt, text) for text in texts]
        try:
            scores = self._model.predict(pairs, batch_size=len(pairs), show_progress_bar=False)
        except RuntimeError as error:  # so says PyTorch when memory runs out, among others
            message = f"PyTorch could not compute a batch: {error}"
            raise InferenceError(message, ErrorCode.PROVIDER_ERROR, retryable=True) from error
        return np.asarray(scores, dtype=np.float32).reshape(-1, 1)
