"""Requests for embeddings and their answers, as web processes and workers exchange them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from inference.errors import ErrorCode, InferenceError

# The client can mend these, by other texts; all others are the service's.
_FAULTS = {
    ErrorCode.CONTENT_FILTERED,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED,
    ErrorCode.INVALID_REQUEST,
}


class UnknownPromptError(InferenceError):
    """The model has no prompt of that name."""

    def __init__(self, name: str, prompts: Iterable[str]) -> None:
        known = ", ".join(sorted(prompts)) or "none"
        message = f"The model has no prompt {name}, but {known}: choose one, or leave this out."
        super().__init__(message, ErrorCode.INVALID_REQUEST)


def prompt_of(prompts: Mapping[str, str], name: str | None, default_name: str | None = None) -> str:
    """The prompt of that name, or the default one, if any. Raises UnknownPromptError."""
    if name is None:
        return prompts.get(default_name, "") if default_name else ""
    try:
        return prompts[name]
    except KeyError:
        raise UnknownPromptError(name, prompts) from None


class Shape(StrEnum):
    """What the answer has: the vectors, or the similarity of the first to each other one.

    PAIR is for one other, whose similarity is no list. OPENAI and OPENAI_BASE64 are the vectors as
    OpenAI's API gives them. RANKING has the texts by how well they answer a query. COUNT has no
    vectors: it is of the prompt of a task; nor has PREFLIGHT, which tells what would be dropped of
    it, and what the answer may cost.
    """

    EMBEDDINGS = "embeddings"
    OPENAI = "openai"
    OPENAI_BASE64 = "openai_base64"
    SIMILARITIES = "similarities"
    PAIR = "pair"
    RANKING = "ranking"
    COUNT = "count"
    PREFLIGHT = "preflight"


@dataclass(frozen=True, slots=True)
class Ranking:
    """The query that texts are ranked by; `top_n` of them are given, None for all.

    `is_by_cosine`: no cross-encoder ranks them, and the query is the first of the texts as well.
    """

    query: str
    top_n: int | None = None
    has_documents: bool = False
    is_by_cosine: bool = False


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts and how to embed them, all of it checked but for `prompt_name`.

    `dimensions`: how many of each vector's are given; None for all. What it costs is counted for
    the `owner`. `ranking`: that of Shape.RANKING; `prompt`: of Shape.COUNT and Shape.PREFLIGHT, the
    request of a task.
    """

    model_name: str
    texts: list[str]
    shape: Shape = Shape.EMBEDDINGS
    normalize: bool = True
    prompt_name: str | None = None
    dimensions: int | None = None
    owner: str = ""
    prompt: dict[str, Any] | None = None
    ranking: Ranking | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "EmbeddingRequest":
        fields: dict[str, Any] = json.loads(text)
        ranking = fields["ranking"] and Ranking(**fields["ranking"])
        return cls(**fields | {"shape": Shape(fields["shape"]), "ranking": ranking})


@dataclass(frozen=True, slots=True)
class Answer:
    """Either the whole body of a response, or why there is none.

    `field`: what of the request the client has to mend; empty where it can do nothing.
    """

    body: str = ""
    error: str = ""
    field: str = ""

    @classmethod
    def failure(cls, error: InferenceError, field: str = "texts") -> "Answer":
        """`field`: what the client has to mend, if anything, and unless the error knows it."""
        if isinstance(error, UnknownPromptError):
            return cls(error=error.message, field="prompt_name")
        return cls(error=error.message, field=field if error.code in _FAULTS else "")
