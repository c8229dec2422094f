"""POST /v1/embeddings, up to the request queue and back."""

import base64
from typing import Any

import numpy as np
import pytest
from rest_framework.test import APIClient

from inference.embeddings.answers import answer
from inference.embeddings.messages import Answer
from inference.embeddings.request_queue import QueuedRequest
from inference.models import RegisteredModel
from tests.conftest import Valkey
from tests.inference.api.test_embeddings import ask

pytestmark = pytest.mark.django_db(transaction=True)

EMBEDDINGS = "/v1/embeddings"
BODY = {"model": "made-for-it", "input": ["one", "two"]}
ROWS = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]], dtype=np.float32)


@pytest.fixture(autouse=True)
def _models(valkey: Valkey, echo: RegisteredModel) -> None:
    """One that is made for shorter vectors, one that is not, and one that gives text."""
    for name, config in (("made-for-it", {"dimensions": 3}), ("whole", {})):
        RegisteredModel.objects.create(
            name=name, provider="embedding", config=config, extra={"dimensions": 3}
        )


def compute(queued: QueuedRequest) -> Answer:
    """What the worker does with the vectors of ROWS."""
    return answer(queued.request, ROWS[: len(queued.request.texts)], 5, [])


def test_vectors_have_the_shape_of_openai() -> None:
    response = ask(compute, BODY, EMBEDDINGS)
    assert response.status_code == 200
    assert response.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": pytest.approx([0.6, 0.8, 0.0])},
            {"object": "embedding", "index": 1, "embedding": pytest.approx([0.0, 0.0, 1.0])},
        ],
        "model": "made-for-it",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        "truncated": [],
    }


def test_vectors_in_base64_are_the_same_to_the_bit() -> None:
    fields = BODY | {"normalize": False}
    coded = ask(compute, fields | {"encoding_format": "base64"}, EMBEDDINGS).json()["data"]
    rows = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in coded]
    assert np.array_equal(rows, ROWS)


def test_vectors_are_cut_and_have_length_one_again() -> None:
    body = BODY | {"input": "one", "dimensions": 1}
    [vector] = ask(compute, body, EMBEDDINGS).json()["data"]
    assert vector["embedding"] == [1.0]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "gone"}, 404, "model"),
        ({"model": "echo"}, 400, "model"),
        ({"input": [[1, 2]]}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"dimensions": 4}, 400, "dimensions"),
        ({"model": "whole", "dimensions": 2}, 400, "dimensions"),
        ({"inputs": "x"}, 400, "inputs"),
    ],
)
def test_refusal_names_the_parameter(
    api: APIClient, fields: dict[str, Any], status: int, param: str
) -> None:
    response = api.post(EMBEDDINGS, BODY | fields, format="json")
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert "model_name" not in error["message"]


def test_failure_of_the_worker_names_the_parameter() -> None:
    response = ask(lambda _: Answer(error="Too odd.", field="texts"), BODY, EMBEDDINGS)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["message"]) == ("input", "input: Too odd.")
