"""What comes of an answer beside its text, which is a `str`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a model thinks before it answers, and no later turn reads."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a call; the first of each call has its `id` and `name`.

    `index` counts the calls of the answer. Those of one call come before those of the next.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


AnswerDelta = str | Reasoning | ToolCallDelta


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with the natural logarithm of its probability, before any sampling."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()
