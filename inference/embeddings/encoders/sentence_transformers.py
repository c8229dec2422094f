"""Models of the sentence-transformers library, read from a folder and from nowhere else."""

import os
import threading
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from django.conf import settings

from inference.embeddings import hardware
from inference.embeddings.encoders.base import Encoder, Vectors
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

    is_parallel: ClassVar[bool] = True

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
        self._model.eval()
        # Its tokenizer breaks when two threads ask for different lengths at once.
        self._tokenizing = threading.Lock()
        self.dimensions = self._model.get_embedding_dimension()
        self.max_tokens = _known_length(self._model.max_seq_length)
        self.prompts = dict(self._model.prompts)
        self.default_prompt_name = self._model.default_prompt_name
        if max_seq_length := config.get("max_seq_length"):
            self._set_length(max_seq_length)

    def _set_length(self, max_seq_length: int) -> None:
        """Raises ValueError where the model has no position for that many tokens."""
        self._model.max_seq_length = self.max_tokens = max_seq_length
        try:
            self.encode(["a " * max_seq_length], "")
        except (IndexError, InferenceError) as error:
            raise ValueError(f"max_seq_length {max_seq_length} is more than it can read") from error

    def count_tokens(self, texts: list[str], prompt: str) -> list[int]:
        with self._tokenizing:
            tokens = self._model.tokenizer([prompt + text for text in texts], truncation=False)
        return [len(ids) for ids in tokens["input_ids"]]

    def encode(self, texts: list[str], prompt: str) -> Vectors:
        """As `SentenceTransformer.encode` does for one batch, but for the sorting by length."""
        import torch

        model = self._model
        try:
            with torch.inference_mode():
                with self._tokenizing:
                    features = model.preprocess(texts, prompt=prompt)
                features = {
                    name: part.to(model.device) if isinstance(part, torch.Tensor) else part
                    for name, part in features.items()
                }
                embeddings = model(features)["sentence_embedding"]
                vectors: Vectors = embeddings[:, : self.dimensions].float().cpu().numpy()
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

    torch.set_num_threads(hardware.threads_per_lane())
    return sentence_transformers


def _known_length(max_seq_length: int | None) -> int | None:
    """Tokenizers without a limit say so by a very large number."""
    return max_seq_length if max_seq_length and max_seq_length < 10**9 else None
