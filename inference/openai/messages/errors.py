"""Errors as Anthropic's API has them."""

import uuid
from typing import Any, TypedDict

from rest_framework.exceptions import APIException

# By status; others are api_error from 500 on, else invalid_request_error.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# Where tasks, which check them, have other names for what a request has.
_NAMES = {
    "/function/parameters": "/input_schema",
    "/function/": "/",
    "response_format:": "output_config.format:",
}


class AnthropicErrorDetail(TypedDict):
    type: str
    message: str


class AnthropicErrorBody(TypedDict):
    """What is wrong, in Anthropic's shape; `type` is error."""

    type: str
    error: AnthropicErrorDetail
    request_id: str


def body(status: int, code: str, message: str, details: Any = None) -> AnthropicErrorBody:
    """The body of an error; its message names the field that is not valid."""
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    for name, theirs in _NAMES.items():
        message = message.replace(name, theirs)
    return AnthropicErrorBody(
        type="error",
        error=AnthropicErrorDetail(type=kind, message=message),
        request_id=f"req_{uuid.uuid4().hex}",
    )


def body_of(error: APIException) -> AnthropicErrorBody:
    """The body of an error that ends a stream, which has no status."""
    return body(error.status_code, "", str(error.detail))
