"""What people look at: the API's description and the browsable API."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.test import Client
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema
from rest_framework.test import APIClient

from tests.inference.api.test_tasks import NewTask
from tests.sopllm.access.test_other_owners import methods_of, routes

TASKS = "/api/v1/tasks"


@pytest.fixture
def schema() -> Iterator[Any]:
    GENERATOR_STATS.reset()
    generator: Any = SchemaGenerator
    yield generator().get_schema(request=None, public=True)
    GENERATOR_STATS.reset()


def test_description_is_valid_openapi(schema: Any, api: APIClient) -> None:
    validate: Any = validate_schema
    validate(schema)
    served = api.get("/openapi.json").json()
    assert served["openapi"].startswith("3.")
    assert set(served["paths"]) == set(schema["paths"])


def test_description_is_made_without_complaints(schema: Any) -> None:
    assert not GENERATOR_STATS._warn_cache
    assert not GENERATOR_STATS._error_cache


def test_description_names_every_route(schema: Any) -> None:
    found = {
        (method, re.sub(r"\{\w+\}", "{}", path))
        for path, operations in schema["paths"].items()
        for method in operations
        if method != "parameters"
    }
    served = {
        (method, "/" + re.sub(r"\(.*?\)", "{}", route))
        for route, view in routes()
        if route.startswith(("api/v1/", "v1/", "metrics"))
        for method in methods_of(view)
    }
    assert found == served - {("get", "/api/v1/")}


def test_every_route_says_what_its_errors_look_like(schema: Any) -> None:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            refusal = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
            body = "OpenAIErrorBody" if path.startswith("/v1/") else "ErrorBody"
            if path.startswith("/v1/messages"):
                body = "AnthropicErrorBody"
            elif path.startswith("/v1/models"):
                body = "OpenAIOrAnthropicError"
            assert refusal == {"$ref": f"#/components/schemas/{body}"}, (method, path)
            assert "503" in operation["responses"]


def test_description_knows_the_fields_of_a_submission(schema: Any) -> None:
    content = schema["paths"][TASKS]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    properties = schema["components"]["schemas"][name]["properties"]
    assert {"model", "prompt", "messages", "temperature", "idempotency_key"} <= set(properties)


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/redoc", "/redoc/"])
def test_docs_load_local_assets_alone(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    page = response.content.decode()
    assets = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    files = [asset for asset in assets if asset.startswith("/static/")]
    assert files
    assert all(asset.startswith(("/", "data:")) for asset in assets), assets
    assert "//fonts." not in page
    for file in files:
        assert finders.find(file.removeprefix("/static/")), file


@pytest.mark.parametrize("path", ["/api/v1/", TASKS, "/api/v1/models"])
def test_browsable_api_shows_pages(api: APIClient, new_task: NewTask, path: str) -> None:
    new_task()
    response = api.get(path, headers={"Accept": "text/html"})
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/html")
    assert b"</html>" in response.content


def test_browsable_api_shows_a_task_and_its_report(api: APIClient, new_task: NewTask) -> None:
    task = new_task()
    for path in (f"{TASKS}/{task.pk}", f"{TASKS}/{task.pk}/report"):
        response = api.get(path, headers={"Accept": "text/html"})
        assert response.status_code == 200
        assert task.pk in response.content.decode()
