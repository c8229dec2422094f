"""The order among owners: at equal priority each has its turn, in the order of their names."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.db import connection, models

from inference.models.tasks import GenerationTask, Queue


class RoundRobinQuerySet(models.QuerySet["RoundRobin"]):
    def purge(self) -> None:
        """Delete those of which no task is pending: whoever comes first then may begin."""
        outer = models.OuterRef
        tasks = GenerationTask.objects.pending()
        is_used = models.Exists(tasks.filter(queue=outer("queue"), priority=outer("priority")))
        self.exclude(is_used).delete()


class RoundRobin(models.Model):
    """Whose task was claimed last, by queue and priority: the turn is the next owner's.

    Without a row, it is the first one's.
    """

    queue = models.CharField(max_length=10, choices=Queue.choices)
    priority = models.FloatField()
    owner = models.CharField(max_length=64)

    objects = RoundRobinQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["queue", "priority"], name="one_last_owner")]

    def __str__(self) -> str:
        return f"{self.queue}, {self.priority:g}: {self.owner}"


def queue_positions(tasks: Iterable[GenerationTask]) -> dict[str, int]:
    """By id, how many pending tasks of the same queue go before each of those that are pending.

    As things are now: if all that are pending may start, and no other comes.
    """
    groups: defaultdict[tuple[str, float, str], list[GenerationTask]] = defaultdict(list)
    for task in tasks:
        if task.status == GenerationTask.Status.PENDING:
            groups[task.queue, task.priority, task.owner].append(task)
    positions: dict[str, int] = {}
    for (queue, priority, owner), group in groups.items():
        first = min((task.created_at, task.pk) for task in group)
        ids = [first[1]]
        if len(group) > 1:
            between = GenerationTask.objects.pending().filter(
                queue=queue,
                priority=priority,
                owner=owner,
                created_at__range=(first[0], max(task.created_at for task in group)),
            )
            moments = between.order_by("created_at", "id").values_list("created_at", "pk")
            ids = [moment[1] for moment in moments if moment >= first]
        with connection.cursor() as cursor:
            values: dict[str, Any] = {"queue": queue, "priority": priority, "owner": owner}
            made = connection.ops.adapt_datetimefield_value(first[0])
            values |= {"created_at": made, "id": first[1], "num_tasks": len(ids)}
            cursor.execute(_AHEAD, values)
            rows = cursor.fetchall()
        num_more_urgent, num_own, _, _ = rows[0]
        others = [(num, bool(has_turn)) for _, _, num, has_turn in rows if num]
        for index, pk in enumerate(ids, start=num_own):
            num_of_others = sum(min(num, index + has_turn) for num, has_turn in others)
            positions[pk] = num_more_urgent + index + num_of_others
    return positions


# In SQL, since every answer about a pending task runs it. A row for each other owner: how many of
# its tasks may go before the last one asked for, and whether its turn comes before that owner's.
_PENDING = f"FROM {GenerationTask._meta.db_table} WHERE status = 'pending' AND queue = %(queue)s"
_EQUAL = f"{_PENDING} AND priority = %(priority)s"
_AHEAD = f"""
WITH RECURSIVE own (num_ahead, last_owner) AS MATERIALIZED (
    SELECT (SELECT COUNT(*) {_EQUAL} AND owner = %(owner)s AND created_at < %(created_at)s) + (
        SELECT COUNT(*) {_EQUAL} AND owner = %(owner)s AND created_at = %(created_at)s
            AND id < %(id)s
    ), COALESCE((
        SELECT owner FROM {RoundRobin._meta.db_table}
        WHERE queue = %(queue)s AND priority = %(priority)s
    ), '')
), others (owner) AS (
    SELECT MIN(owner) {_EQUAL}
    UNION ALL
    SELECT (SELECT MIN(owner) {_EQUAL} AND owner > others.owner)
    FROM others WHERE others.owner IS NOT NULL
)
SELECT (SELECT COUNT(*) {_PENDING} AND priority > %(priority)s), own.num_ahead,
    (SELECT COUNT(*) FROM (
        SELECT 1 {_EQUAL} AND owner = others.owner
        LIMIT (SELECT num_ahead FROM own) + %(num_tasks)s
    ) AS next_tasks),
    CASE WHEN (others.owner > own.last_owner) = (%(owner)s > own.last_owner)
        THEN others.owner < %(owner)s ELSE others.owner > own.last_owner END
FROM own LEFT JOIN others ON others.owner <> %(owner)s
"""  # noqa: S608 (our own names)
