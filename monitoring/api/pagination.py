"""Pages that neither new rows nor deletions shift: links say after which row they begin."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param

from monitoring.api import query_parameters


def _described(parameter: OpenApiParameter) -> dict[str, Any]:
    """A query parameter as the description has it."""
    text, schema = parameter.description, parameter.type
    return {"name": parameter.name, "in": "query", "description": text, "schema": schema}


class StablePagination(CursorPagination):
    """Newest first, unless `ordering` names other fields, the first of which has no equals."""

    ordering: tuple[str, ...] = ("-created_at", "-id")
    page_size_query_param = "limit"

    def get_page_size(self, request: Request) -> int:
        return query_parameters.limit(request)

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        cursor = super().get_schema_operation_parameters(view)[0]
        return [cursor, _described(query_parameters.LIMIT)]

    def check_position(self, position: str) -> None:
        """Raises ValueError for what cannot be a value of the first field."""
        query_parameters.moment(position)

    def decode_cursor(self, request: Request) -> Any:
        """Raises ValidationError for what no page has given as a cursor."""
        try:
            cursor = super().decode_cursor(request)
            if cursor is not None and cursor.position is not None:
                self.check_position(str(cursor.position))
        except (NotFound, ValueError) as error:
            message = "Take the cursor from the `next` of a page, or leave it out."
            raise ValidationError({"cursor": [message]}) from error
        return cursor


class AliasedPagination(StablePagination):
    """`alias` is another name of `results`, `total` counts all rows, `offset` skips some."""

    alias: str

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> Any:
        self._total = queryset.count()
        page: Any = super().paginate_queryset(queryset, request, view)
        if "offset" in request.query_params and self.cursor is not None:
            # An offset of a cursor counts rows with equal values; the links take it for that.
            self.cursor = self.cursor._replace(offset=0)
        return page

    def decode_cursor(self, request: Request) -> Any:
        cursor = super().decode_cursor(request)
        offset = query_parameters.whole_number(request, "offset", 0, 0, query_parameters.MAX_OFFSET)
        if cursor is not None and "offset" in request.query_params:
            message = "The cursor says where the page begins: leave one of them out."
            raise ValidationError({"offset": [message]})
        return Cursor(offset, reverse=False, position=None) if offset else cursor

    def encode_cursor(self, cursor: Cursor) -> str:
        return remove_query_param(super().encode_cursor(cursor), "offset")

    def get_paginated_response(self, data: Any) -> Response:
        body: Any = super().get_paginated_response(data).data
        return Response({self.alias: data, "total": self._total, **body})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        page = super().get_paginated_response_schema(schema)
        page["required"] += [self.alias, "total"]
        page["properties"] |= {self.alias: schema, "total": {"type": "integer"}}
        return page

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        offset = _described(query_parameters.OFFSET)
        return [*super().get_schema_operation_parameters(view), offset]
