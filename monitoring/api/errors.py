"""Errors of the API that Django REST Framework has no exception for."""

from collections.abc import Iterator
from typing import Any

from rest_framework.exceptions import APIException, ValidationError


class RedisUnavailable(APIException):
    """The data are in Redis alone, which cannot be reached."""

    status_code = 503
    default_code = "unavailable"
    default_detail = (
        "Redis cannot be reached: try again in a moment; /api/v1/monitor/health tells more."
    )
    wait = 2


class DatabaseUnavailable(APIException):
    """It is being started again, or is too busy: nothing of the request is stored, or all of it."""

    status_code = 503
    default_code = "unavailable"
    default_detail = (
        "The database cannot be used: try again in a moment; /api/v1/monitor/health tells more."
    )
    wait = 2


class Conflict(APIException):
    status_code = 409
    default_code = "conflict"


class LimitReached(APIException):
    """A limit of the caller, by its name; another try may do after `wait` seconds."""

    status_code = 429
    default_code = "rate_limited"

    def __init__(self, message: str, wait: float, limit: str) -> None:
        super().__init__(message)
        self.wait = wait
        self.details = {"limit": limit}


class QueueFull(APIException):
    status_code = 503
    default_detail = "Too many tasks are pending: submit again in a few seconds."
    error_code = "queue_full"
    wait = 5


def sentences(detail: Any, path: str = "") -> Iterator[str]:
    """What a ValidationError says: `messages.0.role: "wizard" is not a valid choice.`"""
    if isinstance(detail, dict):
        for name, value in detail.items():
            deeper = path if name == "non_field_errors" else f"{path}.{name}".lstrip(".")
            yield from sentences(value, deeper)
    elif isinstance(detail, list):
        for index, item in enumerate(detail):
            is_nested = isinstance(item, dict | list)
            yield from sentences(item, f"{path}.{index}".lstrip(".") if is_nested else path)
    else:
        yield f"{path}: {detail}" if path else str(detail)


def in_words(error: ValidationError) -> str:
    """The messages of all fields in one text, without the names of the fields."""
    details: Any = error.detail
    return " ".join(str(message) for messages in details.values() for message in messages)
