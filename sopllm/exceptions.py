"""Every error of the API in one shape: {"error", "message", "details", "trace_id"}."""

import json
import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any, TypedDict

from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from monitoring.api.errors import sentences

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
_MAX_MEMBERS, _MAX_CHARS = 50, 1000
_FAILED = "The server failed unexpectedly; its log has the reason. Please try again."
_NOT_FOUND = "There is nothing here: check the address, or see /docs for the routes."


class ErrorBody(TypedDict):
    """What is wrong, and what to do; `details` names the fields of a request that is not valid."""

    error: str
    message: str
    details: Any
    trace_id: str | None


def error_body(code: str, message: str, details: Any = None) -> ErrorBody:
    return {"error": code, "message": message, "details": details, "trace_id": None}


def handle_exception(exc: Exception, context: dict[str, Any]) -> Response:
    """DRF's EXCEPTION_HANDLER."""
    set_rollback()
    if isinstance(exc, RecursionError):
        exc = exceptions.ParseError("it is nested too deeply")
    elif isinstance(exc, SuspiciousOperation):
        exc = exceptions.ValidationError(str(exc))
    elif isinstance(exc, Http404):
        exc = exceptions.NotFound(str(exc) or None)
    elif isinstance(exc, PermissionDenied):
        exc = exceptions.PermissionDenied()
    if not isinstance(exc, exceptions.APIException):
        return _unexpected(exc, context["request"].path)
    return _known(exc, context["view"].allowed_methods)


def error_response(exc: Exception, path: str) -> JsonResponse:
    """The answer to an error that is raised after the view has returned."""
    answer = _known(exc) if isinstance(exc, exceptions.APIException) else _unexpected(exc, path)
    response = JsonResponse(answer.data, status=answer.status_code)
    if wait := answer.get("Retry-After"):
        response["Retry-After"] = wait
    return response


def _unexpected(exc: Exception, path: str) -> Response:
    logger.error("Unexpected error at %s", path, exc_info=exc)
    return Response(error_body("internal_error", _FAILED), status=500)


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


def _known(exc: exceptions.APIException, allowed_methods: Sequence[str] = ()) -> Response:
    details = None
    message = str(exc.detail)
    if isinstance(exc, exceptions.ValidationError):
        # A request can have half surrogate pairs in a name, which UTF-8 has not.
        text = json.dumps(_shortened(exc.detail), ensure_ascii=False)
        details = json.loads(text.encode(errors="replace"))
        message = next(sentences(details), "The request is not valid.")
    elif isinstance(exc, exceptions.ParseError):
        message = f"The body is no valid JSON: {exc.detail}."
    elif isinstance(exc, exceptions.UnsupportedMediaType):
        message = "Send the body as JSON, with the header Content-Type: application/json."
    elif isinstance(exc, exceptions.MethodNotAllowed):
        message = f"{exc.detail} Use one of {', '.join(allowed_methods)}."
    code = _CODES.get(exc.status_code, "internal_error")
    if exc.default_code == "queue_full":
        code = exc.default_code
    headers = {}
    if scheme := getattr(exc, "auth_header", None):
        headers["WWW-Authenticate"] = scheme
    wait = getattr(exc, "wait", None)
    if wait:
        headers["Retry-After"] = str(int(wait))
    return Response(error_body(code, message, details), status=exc.status_code, headers=headers)


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Django's handler404: no route has this path."""
    return JsonResponse(error_body("not_found", _NOT_FOUND), status=404)


def bad_request(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Django's handler400: an unknown Host header, above all."""
    message = "Bad request: check the Host header against ALLOWED_HOSTS."
    return JsonResponse(error_body("validation_error", message), status=400)


def server_error(request: HttpRequest) -> JsonResponse:
    """Django's handler500."""
    return JsonResponse(error_body("internal_error", _FAILED), status=500)
