"""GET /v1/models."""

import pytest
from rest_framework.test import APIClient

from inference.models import RegisteredModel

pytestmark = pytest.mark.django_db


def test_models_have_the_shape_of_openai(api: APIClient, echo: RegisteredModel) -> None:
    RegisteredModel.objects.create(name="a:7b", provider="embedding", context_window=512)
    found = api.get("/v1/models").json()
    assert (found["object"], [model["id"] for model in found["data"]]) == ("list", ["a:7b", "echo"])
    assert api.get("/v1/models/a:7b").json() == found["data"][0]
    assert found["data"][0] == {
        "id": "a:7b",
        "object": "model",
        "created": int(RegisteredModel.objects.get(name="a:7b").created_at.timestamp()),
        "owned_by": "embedding",
        "context_window": 512,
        "max_model_len": 512,
        "max_output_tokens": None,
        "capabilities": {
            "completion": False,
            "embeddings": True,
            "streaming": False,
            "structured_output": False,
            "tools": False,
            "vision": False,
        },
    }


@pytest.mark.parametrize("name", ["gone", "org/model", "%00", "a b"])
def test_model_that_is_not_there_is_named(api: APIClient, name: str) -> None:
    for slash in ("", "/"):
        response = api.get(f"/v1/models/{name}{slash}")
        error = response.json()["error"]
        assert response.status_code == 404
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert error["type"] == "invalid_request_error"
