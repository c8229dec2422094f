"""A request that this worker is at: its texts, and those of their vectors that are there."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inference.embeddings.encoders.base import Encoder, Vectors
from inference.embeddings.messages import Answer, Shape
from inference.embeddings.request_queue import Letter
from inference.errors import ErrorCode, InferenceError


@dataclass(eq=False, slots=True)
class Job:
    """`lengths`: the tokens of each text that are computed."""

    letter: Letter
    encoder: Encoder
    prompt: str
    lengths: list[int]
    truncated: list[int]
    # By the indexes of the texts.
    vectors: dict[int, Vectors] = field(default_factory=dict)

    @classmethod
    def of(cls, letter: Letter, encoder: Encoder) -> "Job":
        """Raises InferenceError for a prompt that the model does not have, or texts of nothing."""
        prompt = encoder.prompt(letter.request.prompt_name)
        counts = encoder.count_tokens(letter.request.texts, prompt)
        if 0 in counts:
            message = f"Text {counts.index(0)} has nothing that the model can read: leave it out."
            raise InferenceError(message, ErrorCode.INVALID_REQUEST)
        window = encoder.max_tokens
        truncated = [i for i, count in enumerate(counts) if window and count > window]
        lengths = [min(count, window or count) for count in counts]
        return cls(letter, encoder, prompt, lengths, truncated)

    @property
    def is_complete(self) -> bool:
        return len(self.vectors) == len(self.lengths)

    def answer(self) -> Answer:
        """Of a complete job."""
        rows = np.stack([self.vectors[index] for index in range(len(self.lengths))])
        return answer_of(self.letter, rows, sum(self.lengths), self.truncated)


def answer_of(letter: Letter, rows: Vectors, num_tokens: int, truncated: list[int]) -> Answer:
    """What the client gets; raises InferenceError for vectors that are none."""
    request = letter.request
    if not np.isfinite(rows).all():
        message = f"The model {request.model_name} gave vectors that are no numbers: take another."
        raise InferenceError(message, ErrorCode.PROVIDER_ERROR)
    rest = {
        "model": request.model_name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        "truncated": truncated,
    }
    if request.shape == Shape.EMBEDDINGS:
        made = normalized(rows) if request.normalize else rows
        vectors = ",".join(map(_row_json, made))
        return Answer(f'{{"embeddings":[{vectors}],{_rest_json(rest, dimensions=rows.shape[1])}')
    similarities = [round(each, 7) for each in cosines(rows)]
    if request.shape == Shape.PAIR:
        return Answer(json.dumps({"similarity": similarities[0], **rest}))
    return Answer(json.dumps({"similarities": similarities, **rest}))


def normalized(rows: Vectors) -> Vectors:
    """Each of length 1, as `encode(normalize_embeddings=True)` has them."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    divided: Vectors = rows / np.maximum(lengths, 1e-12)
    return divided


def cosines(rows: Vectors) -> list[float]:
    """Of the first row and each other, from -1 to 1."""
    unit = normalized(rows.astype(np.float64))
    return [float(each) for each in np.clip(unit[1:] @ unit[0], -1.0, 1.0)]


def _rest_json(rest: dict[str, Any], **more: Any) -> str:
    """The members that follow, and the end of the object."""
    return json.dumps(more | rest)[1:]


def _row_json(row: Vectors) -> str:
    """Nine digits bring back the very same float32; ten times as fast as one by one."""
    return f"[{('%.9g,' * len(row))[:-1] % tuple(row.tolist())}]"
