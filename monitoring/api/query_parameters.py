"""Query parameters as the routes take them: what is unknown or unfit is refused."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from django.utils.dateparse import parse_datetime
from drf_spectacular.utils import OpenApiParameter
from rest_framework import viewsets
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MAX_OFFSET = 10**12
_MAX_DIGITS = 18  # what fits into 64 bits


def number_parameter(
    name: str, minimum: float, maximum: float, text: str = "", default: int | None = None
) -> OpenApiParameter:
    """A query parameter as the description shows it: a whole number, unless a bound is none."""
    is_whole = isinstance(minimum, int) and isinstance(maximum, int)
    kind = "integer" if is_whole else "number"
    schema = {"type": kind, "minimum": minimum, "maximum": maximum}
    if default is not None:
        schema["default"] = default
    return OpenApiParameter(name, schema, description=text)


LIMIT = number_parameter("limit", 1, MAX_LIMIT, "How many a page has.", DEFAULT_LIMIT)
OFFSET = number_parameter("offset", 0, MAX_OFFSET, "How many to skip.", 0)


def refuse_unknown(request: Request, known: Collection[str]) -> None:
    """Raise ValidationError for a parameter that the route does not have, or no database takes."""
    for name, values in request.query_params.lists():
        if name not in known:
            raise ValidationError({name: ["Unknown parameter: check its spelling."]})
        if any("\0" in value for value in values):
            raise ValidationError({name: ["It must not contain NUL characters."]})


class StrictViewSet(viewsets.ViewSet):
    """Refuses query parameters that the action does not have."""

    # By action; all others have none.
    known_parameters: ClassVar[Mapping[str, Collection[str]]] = {}

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if self.action:  # else the answer is 405
            refuse_unknown(request, self.known_parameters.get(self.action, ()))


def moment(text: str) -> datetime:
    """A time in ISO 8601 with a zone. Raises ValueError."""
    try:
        found = parse_datetime(text)
        if found and found.tzinfo:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):  # no date, or before the year 1 in UTC
        pass
    raise ValueError("Give ISO 8601 with a zone: 2026-01-31T12:00:00Z.")


def whole_number(request: Request, name: str, default: int, minimum: int, maximum: int) -> int:
    """The parameter within [minimum, maximum], or its default; else raises ValidationError."""
    text = request.query_params.get(name, str(default))
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
    if not is_number or not minimum <= int(text) <= maximum:
        raise ValidationError({name: [f"Give a whole number from {minimum} to {maximum}."]})
    return int(text)


def boolean(request: Request, name: str) -> bool | None:
    """Whether the parameter is true; None without it. Raises ValidationError for other words."""
    text = request.query_params.get(name)
    if text not in ("true", "false", None):
        raise ValidationError({name: ["Give true or false."]})
    return None if text is None else text == "true"


def limit(request: Request) -> int:
    """How many entries a page may have."""
    return whole_number(request, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
