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


ANTHROPIC = {"anthropic-version": "2023-06-01"}


def test_models_have_the_shape_of_anthropic(api: APIClient, echo: RegisteredModel) -> None:
    page = api.get("/v1/models", headers=ANTHROPIC).json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "echo", "echo")
    [model] = page["data"]
    assert model == {
        "type": "model",
        "id": "echo",
        "display_name": "echo",
        "created_at": echo.created_at.isoformat(),
        "lifecycle": "active",
        "max_input_tokens": echo.context_window,
        "max_tokens": echo.max_output_tokens,
    }
    assert api.get("/v1/models/echo", headers=ANTHROPIC).json() == model


@pytest.mark.parametrize(
    ("query", "names", "has_more"),
    [
        ("limit=2", ["a", "b"], True),
        ("limit=2&after_id=b", ["c", "d"], False),
        ("limit=2&before_id=d", ["b", "c"], True),
        ("after_id=d", [], False),
    ],
)
def test_pages_of_anthropic(api: APIClient, query: str, names: list[str], has_more: bool) -> None:
    for name in "dcba":
        RegisteredModel.objects.create(name=name, provider="echo")
    page = api.get(f"/v1/models?{query}", headers=ANTHROPIC).json()
    assert ([model["id"] for model in page["data"]], page["has_more"]) == (names, has_more)


def test_errors_have_the_shape_of_anthropic(api: APIClient) -> None:
    gone = api.get("/v1/models/gone", headers=ANTHROPIC)
    assert (gone.status_code, gone.json()["error"]["type"]) == (404, "not_found_error")
    unfit = api.get("/v1/models?limit=0", headers=ANTHROPIC)
    assert (unfit.status_code, unfit.json()["error"]["type"]) == (400, "invalid_request_error")


def test_parameters_of_anthropic_are_not_those_of_openai(api: APIClient) -> None:
    assert api.get("/v1/models?limit=2").json()["error"]["param"] == "limit"
