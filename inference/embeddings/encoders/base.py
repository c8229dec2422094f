"""What an encoder is: a model in memory that counts the tokens of texts and makes vectors."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from inference.embeddings.messages import prompt_of

# One row a text, not normalized unless the model itself does so.
Vectors = npt.NDArray[np.float32]


class Encoder(ABC):
    """A loaded embedding model; safe for several threads."""

    # Whether several threads get on faster than one.
    is_parallel: ClassVar[bool] = False
    # The length of a vector, and the tokens that are read of a text; None where nobody knows.
    dimensions: int | None
    max_tokens: int | None
    # What is put before each text, by name.
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
