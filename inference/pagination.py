"""Pages of tasks by cursor, of models by offset; a limit that is no number is refused."""

from collections.abc import Iterable
from typing import Any

from rest_framework.pagination import CursorPagination, LimitOffsetPagination
from rest_framework.request import Request
from rest_framework.response import Response

from inference.models import GenerationTask
from monitoring import query_parameters


class TaskPagination(CursorPagination):
    """Newest first; stays right while tasks are added."""

    ordering = ("-created_at", "-id")
    page_size_query_param = "limit"

    def get_page_size(self, request: Request) -> int:
        return query_parameters.limit(request)


class ModelPagination(LimitOffsetPagination):
    """`models` is the alias of `results`."""

    def get_limit(self, request: Request) -> int:
        return query_parameters.limit(request)

    def get_paginated_response(self, data: Any) -> Response:
        body = super().get_paginated_response(data).data
        assert isinstance(body, dict)
        links = {"next": body["next"], "previous": body["previous"]}
        return Response({"models": data, "total": body["count"], "results": data, **links})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        link = {"type": "string", "nullable": True, "format": "uri"}
        return {
            "type": "object",
            "required": ["models", "total", "results"],
            "properties": {
                "models": schema,
                "total": {"type": "integer"},
                "results": schema,
                "next": link,
                "previous": link,
            },
        }


def queue_positions(tasks: Iterable[GenerationTask]) -> dict[str, int]:
    """Positions of the pending ones among `tasks`, with one query a queue."""
    positions: dict[str, int] = {}
    sought = {task.pk: task.queue for task in tasks if not task.has_ended}
    for queue in set(sought.values()):
        pending = GenerationTask.objects.pending().filter(queue=queue).most_urgent_first()
        positions |= {
            pk: index
            for index, pk in enumerate(pending.values_list("pk", flat=True))
            if pk in sought
        }
    return positions
