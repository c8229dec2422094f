"""Pages of tasks by cursor, of models by offset; a limit that is no number is refused."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
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
                query_parameters.moment(str(cursor.position))
        except (NotFound, ValueError) as error:
            message = "Take the cursor from the `next` of a page, or leave it out."
            raise ValidationError({"cursor": [message]}) from error
        return cursor


class ModelPagination(AliasedPagination):
    alias = "models"


def queue_positions(tasks: Iterable[GenerationTask]) -> dict[str, int]:
    """Positions of the pending ones among `tasks`.

    Of each priority: a count of what goes before the first of them, and the ids up to the last.
    """
    times_by_priority: defaultdict[tuple[str, float], list[datetime]] = defaultdict(list)
    for task in tasks:
        if task.status == GenerationTask.Status.PENDING:
            times_by_priority[task.queue, task.priority].append(task.created_at)
    positions: dict[str, int] = {}
    for (queue, priority), times in times_by_priority.items():
        pending = GenerationTask.objects.pending().filter(queue=queue)
        equal = pending.filter(priority=priority)
        num_ahead = pending.filter(priority__gt=priority).count()
        num_ahead += equal.filter(created_at__lt=min(times)).count()
        between = equal.filter(created_at__range=(min(times), max(times))).most_urgent_first()
        ids = between.values_list("pk", flat=True)
        positions |= {pk: num_ahead + index for index, pk in enumerate(ids)}
    return positions
