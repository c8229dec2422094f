"""What every route of the API has in common."""

import re
from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator
from rest_framework.schemas.generators import EndpointEnumerator
from rest_framework.test import APIClient

# For pages that are shown, not called.
PAGES = ("/docs", "/redoc", "/openapi.json")
IDS = {
    "tasks": f"task_{32 * '0'}",
    "diff": f"task_{32 * '0'}",
    "conversations": f"conv_{32 * '0'}",
    "models": "gone",
    "keys": "00000000",
    "files": f"file-{32 * '0'}",
    "batches": f"batch_{32 * '0'}",
    "responses": f"resp_{32 * '0'}",
}


def with_id(path: str) -> str:
    """The path of something that is not there."""
    return re.sub(r"(\w+)/\{\w+\}", lambda match: f"{match[1]}/{IDS[match[1]]}", path)


def call(api: APIClient, method: str, path: str, query: str) -> Any:
    return api.generic(method, f"{with_id(path)}?{query}", "{}", content_type="application/json")


@pytest.mark.parametrize("name", ["limmit", "format"])
def test_unknown_query_parameter_is_refused_on_every_route(api: APIClient, name: str) -> None:
    enumerator: Any = EndpointEnumerator
    routes = [
        (method, path)
        for path, method, _ in enumerator().get_api_endpoints()
        if not path.startswith(PAGES)
    ]
    assert len(routes) > 30
    routes.append(("GET", "/api/v1/"))
    for method, path in routes:
        response = call(api, method, path, f"{name}=1")
        assert response.status_code == 400, (method, path)
        if path.startswith("/v1/messages"):
            message = f"{name}: Unknown parameter: check its spelling."
            assert response.json()["error"]["message"] == message, path
            continue
        details = response.json().get("details") or {"": response.json()["error"]["param"]}
        expected = {name: ["Unknown parameter: check its spelling."]}
        assert details == ({"": name} if path.startswith("/v1/") else expected), path


def test_each_parameter_of_the_description_is_known(api: APIClient) -> None:
    generator: Any = SchemaGenerator
    for path, operations in generator().get_schema(request=None, public=True)["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query":
                    response = call(api, method.upper(), path, f"{parameter['name']}=%00")
                    assert "Unknown parameter" not in response.content.decode(), (method, path)
                    assert 400 <= response.status_code < 500, (method, path, parameter["name"])


def test_method_that_a_route_does_not_have_is_refused_whatever_its_parameters(
    api: APIClient,
) -> None:
    for path, parameter in ((f"/api/v1/tasks/{IDS['tasks']}", "wait"), ("/api/v1/tasks", "x")):
        response = api.generic("TRACE", f"{path}?{parameter}=1")
        assert (response.status_code, response.json()["error"]) == (405, "method_not_allowed")
