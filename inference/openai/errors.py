"""Errors as OpenAI's API has them, and how the end of a task is one."""

from collections.abc import Sequence
from typing import Any, TypedDict

from rest_framework.exceptions import APIException, NotFound

from inference.errors import ErrorCode
from inference.models import GenerationTask


class OpenAIErrorDetail(TypedDict):
    """`param`: the field that is not valid; `code`: what is wrong, where it has a name."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(TypedDict):
    """What is wrong, in OpenAI's shape."""

    error: OpenAIErrorDetail


# By status; others are server_error from 500 on, else invalid_request_error.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Our codes that OpenAI has other names for.
_CODES = {
    "authentication_required": "invalid_api_key",
    "budget_exceeded": "insufficient_quota",
    "content_filtered": "content_filter",
    "permission_denied": "insufficient_permissions",
    "rate_limited": "rate_limit_exceeded",
    "validation_error": "invalid_value",
}
# Fields that have other names at /api/v1, where they are checked.
_PARAMS = {"model_name": "model", "texts": "input"}
# The status for each error code of a task, so that the SDK raises the exception that fits.
_STATUSES = {
    ErrorCode.CONTENT_FILTERED: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.BUDGET_EXCEEDED: 429,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.INTERNAL_ERROR: 500,
    ErrorCode.MODEL_LOAD_FAILED: 500,
    ErrorCode.STRUCTURED_OUTPUT_INVALID: 500,
    ErrorCode.WORKER_LOST: 500,
    # The caller's key is right; it is the service's own key that the provider refuses.
    ErrorCode.AUTHENTICATION_FAILED: 502,
    ErrorCode.PROVIDER_ERROR: 502,
    ErrorCode.PROVIDER_UNAVAILABLE: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
    ErrorCode.PROVIDER_TIMEOUT: 504,
    ErrorCode.TIMEOUT: 504,
}


class ModelNotFound(NotFound):
    """No model has the name."""

    error_code = "model_not_found"


class TaskNotCompleted(APIException):
    """A task has failed, or was cancelled.

    The SDK is told not to ask again by itself: the service has done so where that may help.
    """

    def __init__(self, task: GenerationTask | None, tasks: Sequence[GenerationTask]) -> None:
        """`tasks`: all of the request; the `task` is None when it was deleted."""
        self.headers = {"X-Should-Retry": "false", **task_ids(tasks)}
        if task is None:
            self.status_code, self.error_code = 410, "deleted"
            super().__init__("The task was deleted before its end: send the request again.")
        elif task.error_code is None:
            self.status_code, self.error_code = 410, "cancelled"
            super().__init__("The task was cancelled: send the request again.")
        else:
            self.status_code = _STATUSES.get(ErrorCode(task.error_code), 500)
            self.error_code = task.error_code
            super().__init__(task.error)


class AnswerVoid(APIException):
    """A part of the answer was sent, and the task then had to begin anew."""

    status_code = 500
    error_code = ErrorCode.WORKER_LOST.value
    default_detail = (
        "The answer broke off and had to begin anew, which a stream cannot take back: send the "
        "request again."
    )


def task_ids(tasks: Sequence[GenerationTask]) -> dict[str, str]:
    """The header that names the tasks of a request."""
    return {"X-Task-Id": ",".join(task.pk for task in tasks)}


def body(status: int, code: str, message: str, details: Any = None) -> OpenAIErrorBody:
    """The body of an error; the first of the fields in `details` is its `param`."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = "model" if code == ModelNotFound.error_code else None
    if status == 400 and isinstance(details, dict):
        names = [name for name in details if name != "non_field_errors"]
        if names:
            param = _PARAMS.get(names[0], names[0])
            message = message.replace(names[0], param, 1)
    return {
        "error": {"message": message, "type": kind, "param": param, "code": _CODES.get(code, code)}
    }


def body_of(error: APIException) -> OpenAIErrorBody:
    """The body of an error that ends a stream, which has no status."""
    code = getattr(error, "error_code", "internal_error")
    return body(error.status_code, code, str(error.detail))
