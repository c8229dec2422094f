"""Pages of models, and the positions of tasks in the queue."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from inference.models import GenerationTask
from monitoring.api.pagination import AliasedPagination


class ModelPagination(AliasedPagination):
    """By name."""

    alias = "models"
    ordering = ("name",)

    def check_position(self, position: str) -> None:
        if "\0" in position:  # PostgreSQL refuses to look for one
            raise ValueError(position)


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
