"""A client that compares each answer of the API with what /openapi.json says of it."""

import re
from functools import cache
from typing import Any

from drf_spectacular.generators import SchemaGenerator
from jsonschema import Draft7Validator, ValidationError
from jsonschema.exceptions import best_match
from rest_framework.test import APIClient


class DescribedClient(APIClient):
    """Fails where an answer has a status, a type or a member that its route does not name."""

    def request(self, **kwargs: Any) -> Any:
        response: Any = super().request(**kwargs)
        operation = _operation(kwargs["REQUEST_METHOD"].lower(), kwargs["PATH_INFO"])
        if operation is not None:
            _check(operation, response)
        return response


@cache
def description() -> Any:
    """The API's description."""
    generator: Any = SchemaGenerator
    return generator().get_schema(request=None, public=True)


def _operation(method: str, path: str) -> Any:
    """What the description has of it; None for pages, and what no route takes."""
    paths = description()["paths"]
    path = path.removesuffix("/")
    template = path if path in paths else None
    for each in paths:
        if template is None and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each), path):
            template = each
    return paths.get(template, {}).get(method)


def _check(operation: Any, response: Any) -> None:
    name, status = operation["operationId"], str(response.status_code)
    described = operation["responses"].get(status)
    assert described, f"{name} answers {status}, and names only {[*operation['responses']]}"
    content_type = response.get("Content-Type", "").partition(";")[0]
    if response.streaming or content_type == "text/html":  # the browsable API
        return
    contents = described.get("content", {})
    assert content_type in (contents or ("",)), f"{name} answers with {content_type}"
    if content_type == "application/json":
        error = misfit(contents[content_type]["schema"], response.json())
        assert error is None, f"{name} answers {status} with another shape: {error}"


def misfit(schema: Any, value: Any) -> ValidationError | None:
    """Why a value does not have the shape of this schema of the description."""
    validator = Draft7Validator(_as_json_schema(schema) | _components())
    return best_match(validator.iter_errors(value))


@cache
def _components() -> Any:
    schemas = description()["components"]["schemas"]
    return {"components": {"schemas": {n: _as_json_schema(s) for n, s in schemas.items()}}}


def _as_json_schema(schema: Any) -> Any:
    """Of OpenAPI's, with nullable spelled out; objects have no members that are not described."""
    if isinstance(schema, list):
        return [_as_json_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _as_json_schema(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return {"anyOf": [found, {"type": "null"}]} if schema.get("nullable") is True else found
