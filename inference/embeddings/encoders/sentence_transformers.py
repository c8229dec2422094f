"""Models of the sentence-transformers library, read from a folder and from nowhere else."""

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any

from django.conf import settings

from inference.embeddings.encoders.base import Encoder, Vectors, cores_per_thread
from inference.errors import ErrorCode, InferenceError

# Without these it asks the hub for files that a folder lacks, and prints bars into the log.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # A thread that has nothing to do must not keep a core from the API.
    "OMP_WAIT_POLICY": "PASSIVE",
}


class SentenceTransformersEncoder(Encoder):
    """A model in memory; vectors are those of `SentenceTransformer.encode`.

    Padding changes the last bits alone: the same text in two batches differs by about 1e-7.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Raises OSError, ValueError or RuntimeError with the library's reason."""
        self._model = library().SentenceTransformer(
            str(folder),
            device=settings.EMBEDDING_DEVICE,
            prompts=config.get("prompts"),
            truncate_dim=config.get("dimensions"),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        # Texts are counted beyond the window, and a tokenizer cannot change its window for one
        # thread while it is at work for another.
        self._counting_tokenizer = copy.deepcopy(self._model.tokenizer)
        self.dimensions = self._model.get_embedding_dimension()
        # Tokenizers without a limit say so by a very large number.
        window = self._model.max_seq_length
        self.max_tokens = window if window and window < 10**9 else None
        self.prompts = dict(self._model.prompts)
        self.default_prompt_name = self._model.default_prompt_name
        if max_seq_length := config.get("max_seq_length"):
            self._model.max_seq_length = self.max_tokens = max_seq_length
        # The first call sets the tokenizers' windows, before there are several threads.
        longest = "a " * (max_seq_length or 1)
        self.count_tokens([longest], "")
        try:
            self.encode([longest], "")
        except (IndexError, InferenceError) as error:
            message = f"max_seq_length {self.max_tokens} is more than it can read"
            raise ValueError(message) from error

    def count_tokens(self, texts: list[str], prompt: str) -> list[int]:
        prompted = [prompt + text for text in texts]
        tokens = self._counting_tokenizer(prompted, truncation=False)
        return [len(ids) for ids in tokens["input_ids"]]

    def encode(self, texts: list[str], prompt: str) -> Vectors:
        try:
            vectors: Vectors = self._model.encode(
                texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False
            )
        except RuntimeError as error:  # so says PyTorch when memory runs out, among others
            message = f"PyTorch could not compute a batch: {error}"
            raise InferenceError(message, ErrorCode.PROVIDER_ERROR, retryable=True) from error
        return vectors


@cache
def library() -> Any:
    """The module. The first call takes seconds and 400 MB; only the embeddings worker makes it."""
    os.environ.update(_ENVIRONMENT)
    import sentence_transformers
    import torch

    torch.set_num_threads(cores_per_thread())
    return sentence_transformers
