"""Pages of tasks by cursor, of models by offset; a limit that is no number is refused."""

from collections.abc import Iterable
from typing import Any

from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request

from inference.models import GenerationTask
from monitoring.api import query_parameters
from monitoring.api.pagination import AliasedPagination


class TaskPagination(CursorPagination):
    """Newest first; stays right while tasks are added."""

    ordering = ("-created_at", "-id")
    page_size_query_param = "limit"

    def get_page_size(self, request: Request) -> int:
        return query_parameters.limit(request)

    def decode_cursor(self, request: Request) -> Any:
        """Raises ValidationError for what no page has given as a cursor."""
        try:
            cursor = super().decode_cursor(request)
            if cursor is not None and cursor.position is not None:
                query_parameters.moment(cursor.position)
        except (NotFound, ValueError) as error:
            message = "Take the cursor from the `next` of a page, or leave it out."
            raise ValidationError({"cursor": [message]}) from error
        return cursor


class ModelPagination(AliasedPagination):
    alias = "models"


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
