"""Pages by offset, as lists with an alias are answered."""

from typing import Any

from rest_framework.pagination import LimitOffsetPagination
from rest_framework.request import Request
from rest_framework.response import Response

from monitoring.api import query_parameters


class AliasedPagination(LimitOffsetPagination):
    """`alias` is another name of `results`; `total` counts all rows."""

    alias: str

    def get_limit(self, request: Request) -> int:
        return query_parameters.limit(request)

    def get_offset(self, request: Request) -> int:
        return query_parameters.whole_number(request, "offset", 0, 0, query_parameters.MAX_OFFSET)

    def get_paginated_response(self, data: Any) -> Response:
        body = super().get_paginated_response(data).data
        assert isinstance(body, dict)
        links = {"next": body["next"], "previous": body["previous"]}
        return Response({self.alias: data, "total": body["count"], "results": data, **links})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        link = {"type": "string", "nullable": True, "format": "uri"}
        return {
            "type": "object",
            "required": [self.alias, "total", "results"],
            "properties": {
                self.alias: schema,
                "total": {"type": "integer"},
                "results": schema,
                "next": link,
                "previous": link,
            },
        }
