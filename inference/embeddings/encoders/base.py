"""The interface of encoders: a loaded model that counts tokens and computes vectors."""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
from django.conf import settings

from inference.embeddings.messages import prompt_of

# One row a text, not normalized unless the model itself does so.
Vectors = npt.NDArray[np.float32]

_MAX_THREADS = 4


class Encoder(ABC):
    """A loaded embedding model; safe for several threads."""

    # Length of a vector, and tokens read of a text; None if unknown.
    dimensions: int | None
    max_tokens: int | None
    # Prompts that precede each text, by name.
    prompts: dict[str, str]
    default_prompt_name: str | None = None

    @abstractmethod
    def count_tokens(self, texts: list[str], prompt: str) -> list[int]:
        """Tokens of each whole text with the prompt before it, special tokens included."""

    @abstractmethod
    def encode(self, texts: list[str], prompt: str) -> Vectors:
        """The vectors of a batch. Raises InferenceError."""

    def prompt(self, name: str | None) -> str:
        """The prompt of that name, or the model's default, if any. Raises UnknownPromptError."""
        return prompt_of(self.prompts, name, self.default_prompt_name)


def is_cpu() -> bool:
    return bool(settings.EMBEDDING_DEVICE == "cpu")


def num_threads() -> int:
    """Batches that are computed at a time; a GPU takes them one by one.

    Two batches on one core each take less time than one after the other on two, since the cores
    wait for each other after every layer, the more so while the API needs one of them.
    """
    return min(_MAX_THREADS, _num_cores()) if is_cpu() else 1


def cores_per_thread() -> int:
    return max(1, _num_cores() // num_threads())


def _num_cores() -> int:
    from joblib import cpu_count  # only processes that compute pay for it

    return settings.N_THREADS or cpu_count()
