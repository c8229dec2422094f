"""Lists as OpenAI's API has them: pages that begin after a row."""

from collections.abc import Callable
from typing import Any, TypeVar

from django.db.models import Model, Q, QuerySet
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from monitoring.api.query_parameters import DEFAULT_LIMIT, MAX_LIMIT, whole_number

Row = TypeVar("Row", bound=Model)


def page(
    request: Request, rows: QuerySet[Row], body: Callable[[Row], Any], *, is_ascending: bool = False
) -> Response:
    """Up to `limit` rows by the time of their creation, from the one `after` another on.

    Raises ValidationError for a row that is not there.
    """
    limit = whole_number(request, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
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
