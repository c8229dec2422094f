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

from tests.described_client import misfit
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


def test_every_operation_has_a_summary_examples_and_its_errors(schema: Any) -> None:
    for path, method, operation in operations(schema):
        where = (method, path)
        assert 3 < len(operation["summary"]) <= 40, where
        assert len(operation["tags"]) == 1, where
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert "example" in content, where
            assert misfit(content["schema"], content["example"]) is None, where
        responses = operation["responses"]
        answers = {int(code): body for code, body in responses.items() if code < "300"}
        assert answers, where
        for code, answer in answers.items():
            contents = answer.get("content", {})
            has_example = any("example" in content for content in contents.values())
            assert has_example != (code == 204), where
            for media_type, content in contents.items():
                if media_type == "application/json" and "example" in content:
                    assert misfit(content["schema"], content["example"]) is None, where
        expected = {"400", "401", "403", "429", "500", "503"}
        expected |= {"404"} if "{" in path else set()
        has_one_form = path.startswith("/v1/") or path.endswith("/stream")
        assert ("406" in responses) != has_one_form, where
        expected |= {"413", "415"} if "requestBody" in operation else set()
        assert expected <= responses.keys(), where
        shape = "OpenAIErrorBody" if path.startswith("/v1/") else "ErrorBody"
        if path.startswith("/v1/messages"):
            shape = "AnthropicErrorBody"
        elif path.startswith("/v1/models"):
            shape = "OpenAIOrAnthropicError"
        for code in responses.keys() - {"503"}:
            if code >= "400":
                assert responses[code]["description"], where
                refusal = responses[code]["content"]["application/json"]["schema"]
                assert refusal == {"$ref": f"#/components/schemas/{shape}"}, where


def test_groups_are_in_the_order_of_use(schema: Any) -> None:
    groups = [tag["name"] for tag in schema["tags"]]
    used = [operation["tags"][0] for _, _, operation in operations(schema)]
    assert list(dict.fromkeys(used)) == groups
    assert groups[0] == "tasks"
    assert all(tag["description"] for tag in schema["tags"])
    first = next(operations(schema))
    assert first[:2] == ("/api/v1/tasks", "post")


def operations(schema: Any) -> Iterator[tuple[str, str, Any]]:
    """The path, method and description of each."""
    for path, by_method in schema["paths"].items():
        for method, operation in by_method.items():
            yield path, method, operation


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
