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
    assert found == {
        ("get", TASKS),
        ("post", TASKS),
        ("get", f"{TASKS}/{{}}"),
        ("delete", f"{TASKS}/{{}}"),
        ("get", f"{TASKS}/{{}}/report"),
        ("get", f"{TASKS}/{{}}/stream"),
        ("post", f"{TASKS}/{{}}/cancel"),
        ("post", f"{TASKS}/batch"),
        ("get", "/api/v1/models"),
        ("get", "/api/v1/models/{}"),
        ("delete", "/api/v1/models/{}"),
        ("post", "/api/v1/models/check-compatibility"),
        ("post", "/api/v1/models/load"),
        ("post", "/api/v1/models/unload"),
        ("post", "/api/v1/models/register"),
        ("get", "/api/v1/models/presets"),
        ("post", "/api/v1/models/register-from-preset"),
        ("get", "/api/v1/conversations"),
        ("post", "/api/v1/conversations"),
        ("get", "/api/v1/conversations/{}"),
        ("patch", "/api/v1/conversations/{}"),
        ("delete", "/api/v1/conversations/{}"),
        ("get", "/api/v1/conversations/{}/messages"),
        ("post", "/api/v1/conversations/{}/messages"),
        ("delete", "/api/v1/conversations/{}/messages"),
        ("post", "/api/v1/embeddings"),
        ("post", "/api/v1/embeddings/similarity"),
        ("get", "/api/v1/keys"),
        ("post", "/api/v1/keys"),
        ("get", "/api/v1/keys/{}"),
        ("delete", "/api/v1/keys/{}"),
        ("get", "/api/v1/keys/me"),
        ("post", "/api/v1/monitor/ticket"),
        ("get", "/api/v1/webhooks/secret"),
        ("post", "/api/v1/webhooks/secret"),
        ("get", "/api/v1/monitor/health"),
        ("get", "/api/v1/monitor/gpu"),
        ("get", "/api/v1/monitor/events"),
        ("get", "/api/v1/monitor/logs"),
        ("get", "/api/v1/monitor/queue"),
        ("get", "/api/v1/monitor/stats"),
        ("get", "/metrics"),
    }


def test_every_route_says_what_its_errors_look_like(schema: Any) -> None:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            refusal = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
            assert refusal == {"$ref": "#/components/schemas/ErrorBody"}, (method, path)
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
