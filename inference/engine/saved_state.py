"""What a model's memory has of one sequence, saved so that it can be put back."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class SavedState:
    """`tokens` are those whose keys and values it has, from position 0.

    The first `num_deterministic_tokens` were computed alone, in whole chunks. `data` is as the
    model's memory writes it.
    """

    tokens: list[int]
    num_deterministic_tokens: int
    data: memoryview
