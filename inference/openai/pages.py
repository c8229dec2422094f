"""Lists as OpenAI's API has them: pages that begin after a row."""

from collections.abc import Callable
from typing import Any, TypeVar

from django.db.models import Model, Q, QuerySet
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from monitoring.api import query_parameters
from monitoring.api.query_parameters import LIMIT

Row = TypeVar("Row", bound=Model)

AFTER = OpenApiParameter("after", str, description="The id of the last one of the page before.")
PARAMETERS = [AFTER, LIMIT]
ORDER = OpenApiParameter("order", str, enum=["asc", "desc"], default="desc")


def wants_ascending(request: Request) -> bool:
    """Whether `order` is asc. Raises ValidationError for other words."""
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ValidationError({"order": ["Give asc or desc."]})
    return order == "asc"


def page(
    request: Request, rows: QuerySet[Row], body: Callable[[Row], Any], *, is_ascending: bool = False
) -> Response:
    """Up to `limit` rows by the time of their creation, from the one `after` another on.

    Raises ValidationError for a row that is not there.
    """
    limit = query_parameters.limit(request)
    order = ("created_at", "pk") if is_ascending else ("-created_at", "-pk")
    if pk := request.query_params.get("after"):
        created_at = rows.filter(pk=pk).values_list("created_at", flat=True).first()
        if created_at is None:
            raise ValidationError({"after": [f"There is no {pk[:100]}: take the id of a row."]})
        towards = "gt" if is_ascending else "lt"
        same = Q(created_at=created_at, **{f"pk__{towards}": pk})
        rows = rows.filter(Q(**{f"created_at__{towards}": created_at}) | same)
    found = list(rows.order_by(*order)[: limit + 1])
    data = [body(row) for row in found[:limit]]
    return Response(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(found) > limit,
        }
    )
