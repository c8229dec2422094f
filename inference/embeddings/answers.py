"""The body of an answer, from the vectors of a request's texts."""

import base64
import json
from typing import Any

import numpy as np

from inference.embeddings.encoders.base import Vectors
from inference.embeddings.messages import Answer, EmbeddingRequest, Ranking, Shape
from inference.errors import ErrorCode, InferenceError

_VECTORS = (Shape.EMBEDDINGS, Shape.OPENAI, Shape.OPENAI_BASE64)


def answer(
    request: EmbeddingRequest, rows: Vectors, num_tokens: int, truncated: list[int]
) -> Answer:
    """The answer to the client. Raises InferenceError for vectors that are not finite."""
    if not np.isfinite(rows).all():
        message = f"The model {request.model_name} gave vectors that are no numbers: take another."
        raise InferenceError(message, ErrorCode.PROVIDER_ERROR)
    rest = {
        "model": request.model_name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        "truncated": truncated,
    }
    rows = rows[:, : request.dimensions]
    if request.shape in _VECTORS:
        chosen = normalized(rows) if request.normalize else rows
        if request.shape == Shape.OPENAI_BASE64:
            vectors = [f'"{base64.b64encode(row.astype("<f4")).decode()}"' for row in chosen]
        else:
            # Nine digits bring back the very same float32; ten times as fast as one by one.
            row_format = f"[{','.join(['%.9g'] * rows.shape[1])}]"
            vectors = [row_format % tuple(row) for row in chosen.tolist()]
        if request.shape == Shape.EMBEDDINGS:
            other_fields = json.dumps({"dimensions": rows.shape[1], **rest})[1:]
            return Answer(f'{{"embeddings":[{",".join(vectors)}],{other_fields}')
        data = ",".join(
            f'{{"object":"embedding","index":{index},"embedding":{vector}}}'
            for index, vector in enumerate(vectors)
        )
        return Answer(f'{{"object":"list","data":[{data}],{json.dumps(rest)[1:]}')
    if request.ranking is not None:
        return Answer(json.dumps(_ranked(request, request.ranking, rows, rest)))
    similarities = [round(each, 7) for each in cosines(rows)]
    if request.shape == Shape.PAIR:
        return Answer(json.dumps({"similarity": similarities[0], **rest}))
    return Answer(json.dumps({"similarities": similarities, **rest}))


def _ranked(
    request: EmbeddingRequest, ranking: Ranking, rows: Vectors, rest: dict[str, Any]
) -> dict[str, Any]:
    texts = request.texts[ranking.is_by_cosine :]
    scores = cosines(rows) if ranking.is_by_cosine else rows[:, 0].tolist()
    best = sorted(range(len(texts)), key=lambda index: -scores[index])[: ranking.top_n]
    results = [
        {"index": index, "relevance_score": round(scores[index], 7)}
        | ({"document": {"text": texts[index]}} if ranking.has_documents else {})
        for index in best
    ]
    return {"object": "list", "results": results, "model": rest["model"], "usage": rest["usage"]}


def normalized(rows: Vectors) -> Vectors:
    """Each of length 1, as `encode(normalize_embeddings=True)` has them."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    divided: Vectors = rows / np.maximum(lengths, 1e-12)
    return divided


def cosines(rows: Vectors) -> list[float]:
    """Of the first row and each other, from -1 to 1."""
    unit = normalized(rows.astype(np.float64))
    return [float(each) for each in np.clip(unit[1:] @ unit[0], -1.0, 1.0)]
