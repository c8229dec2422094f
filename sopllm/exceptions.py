"""Every error of the API in one shape: {"error", "message", "details", "trace_id"}.

Those of routes that speak for other APIs are in the shapes of these.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypedDict

from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from inference.openai import errors as openai_errors
from inference.openai.messages import errors as anthropic_errors
from monitoring.api.errors import DatabaseUnavailable, sentences

logger = logging.getLogger(__name__)

_CODES = {
    400: "validation_error",
    401: "authentication_required",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    406: "validation_error",
    409: "conflict",
    413: "payload_too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    503: "unavailable",
}
# The shapes of errors below other addresses than /api/v1, from status, code, message and details;
# the first that fits is taken.
_SHAPES: list[tuple[str, Callable[[int, str, str, Any], Any]]] = [
    ("/v1/messages/", anthropic_errors.body),
    ("/v1/", openai_errors.body),
]
_MAX_MEMBERS, _MAX_CHARS = 50, 1000
_FAILED = "The server failed unexpectedly; its log has the reason. Please try again."
_NOT_FOUND = "There is nothing here: check the address, or see /docs for the routes."


class ErrorBody(TypedDict):
    """What is wrong, and what to do; `details` names the fields of a request that is not valid."""

    error: str
    message: str
    details: Any
    trace_id: str | None


def error_body(path: str, status: int, code: str, message: str, details: Any = None) -> Any:
    """The body of an error, in the shape that clients of this path expect."""
    for prefix, shape in _SHAPES:
        if f"{path}/".startswith(prefix):
            return shape(status, code, message, details)
    return ErrorBody(error=code, message=message, details=details, trace_id=None)


def error_json(path: str, status: int, code: str, message: str) -> JsonResponse:
    """The answer to an error that no view has raised."""
    body = error_body(path, status, code, message)
    return JsonResponse(body, status=status, headers=_id_header(body))


def handle_exception(exc: Exception, context: dict[str, Any]) -> Response:
    """DRF's EXCEPTION_HANDLER."""
    set_rollback()
    if isinstance(exc, RecursionError):
        exc = exceptions.ParseError("The body is nested too deeply.")
    elif isinstance(exc, SuspiciousOperation):
        exc = exceptions.ValidationError(str(exc))
    elif isinstance(exc, Http404):
        exc = exceptions.NotFound(str(exc) or None)
    elif isinstance(exc, PermissionDenied):
        exc = exceptions.PermissionDenied()
    if not isinstance(exc, exceptions.APIException):
        return _unexpected(exc, context["request"].path)
    view = context["view"]
    media_type = view.parser_classes[0].media_type
    return _known(exc, context["request"].path, view.allowed_methods, media_type)


def error_response(exc: Exception, path: str) -> JsonResponse:
    """The answer to an error that is raised outside of a view."""
    if isinstance(exc, exceptions.APIException):
        answer = _known(exc, path)
    else:
        answer = _unexpected(exc, path)
    response = JsonResponse(answer.data, status=answer.status_code)
    for name, value in answer.items():
        response.headers.setdefault(name, value)
    return response


def _unexpected(exc: Exception, path: str) -> Response:
    if isinstance(exc, OperationalError | InterfaceError):
        logger.error("The database cannot be used at %s: %s", path, exc)
        return _known(DatabaseUnavailable(), path)
    logger.error("Unexpected error at %s", path, exc_info=exc)
    body = error_body(path, 500, "internal_error", _FAILED)
    return Response(body, status=500, headers=_id_header(body))


def _id_header(body: Any) -> dict[str, str]:
    """What a shape has in a header too: Anthropic's SDK reads the id of a request there."""
    return {"request-id": body["request_id"]} if "request_id" in body else {}


def _shortened(detail: Any) -> Any:
    """The first members that are not valid, in sentences of a length that may be sent back."""
    if isinstance(detail, dict):
        shown = {name: _shortened(value) for name, value in islice(detail.items(), _MAX_MEMBERS)}
        if (num_more := len(detail) - _MAX_MEMBERS) > 0:
            shown["non_field_errors"] = [f"{num_more} more are not valid."]
        return shown
    if isinstance(detail, list):
        return [_shortened(value) for value in detail[:_MAX_MEMBERS]]
    text = str(detail)
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}…"


def _known(
    exc: exceptions.APIException,
    path: str,
    allowed_methods: Sequence[str] = (),
    media_type: str = "application/json",
) -> Response:
    details = getattr(exc, "details", None)
    message = str(exc.detail)
    if isinstance(exc, exceptions.ValidationError):
        # A request can have half surrogate pairs in a name, which UTF-8 has not.
        text = json.dumps(_shortened(exc.detail), ensure_ascii=False)
        details = json.loads(text.encode(errors="replace"))
        message = next(sentences(details), "The request is not valid.")
    elif isinstance(exc, exceptions.UnsupportedMediaType):
        message = f"Send the body with the header Content-Type: {media_type}."
    elif isinstance(exc, exceptions.MethodNotAllowed):
        message = f"{exc.detail} Use one of {', '.join(allowed_methods)}."
    code = getattr(exc, "error_code", None) or _CODES.get(exc.status_code, "internal_error")
    headers = dict(getattr(exc, "headers", {}))
    if scheme := getattr(exc, "auth_header", None):
        headers["WWW-Authenticate"] = scheme
    wait = getattr(exc, "wait", None)
    if wait:
        headers["Retry-After"] = str(math.ceil(wait))
    body = error_body(path, exc.status_code, code, message, details)
    return Response(body, status=exc.status_code, headers=headers | _id_header(body))


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Django's handler404: no route has this path."""
    return error_json(request.path, 404, "not_found", _NOT_FOUND)


def bad_request(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Django's handler400: an unknown Host header, above all."""
    message = "Bad request: check the Host header against ALLOWED_HOSTS."
    return error_json(request.path, 400, "validation_error", message)


def server_error(request: HttpRequest) -> JsonResponse:
    """Django's handler500."""
    return error_json(request.path, 500, "internal_error", _FAILED)
