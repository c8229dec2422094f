"""The order among owners: at equal priority they share by weight, by start-time fair queueing.

Each owner has a virtual time for a queue and priority: what its attempts have cost, divided by its
weight. Next is the owner whose virtual time is lowest once its next task is paid for. What runs is
counted at the owner's usual cost, until its end adds the true one: so nothing is written when a
task of a busy owner is claimed. An owner who comes back after a pause starts at the present virtual
time, and with its first task at once: no credit is hoarded.

`inference/scheduling/shares.py` has the same rule over any clock.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import connection, models
from django.db.models.functions import Now

from inference.models.tasks import GenerationTask, Queue
from inference.scheduling.shares import Turns
from monitoring.redis.cache import cached

# An owner who has had no task for so long is forgotten.
_FORGOTTEN_AFTER = timedelta(hours=1)
# Tasks that are more urgent are counted anew for each position up to so many, and beyond for all
# positions at once: counting 30,000 takes as long as all the rest of a request.
_MAX_COUNTED = 1000
_COUNTED_SECONDS = 1.0


class OwnerShareQuerySet(models.QuerySet["OwnerShare"]):
    def purge(self) -> None:
        """Delete those of owners who have long had nothing to do."""
        outer = models.OuterRef
        tasks = GenerationTask.objects.unfinished().filter(
            queue=outer("queue"), priority=outer("priority"), owner=outer("owner")
        )
        idle = self.filter(active_at__lt=Now() - _FORGOTTEN_AFTER)
        idle.exclude(models.Exists(tasks)).delete()


class OwnerShare(models.Model):
    """What an owner has had of a queue at one priority.

    `virtual_time` and `step` are in GPU-seconds, on the api queue in calls, divided by the owner's
    weight; the step is what its tasks cost on average. `active_at`: the last time that one ended,
    or that the owner came back.
    """

    queue = models.CharField(max_length=10, choices=Queue.choices)
    priority = models.FloatField()
    owner = models.CharField(max_length=64)
    virtual_time = models.FloatField()
    step = models.FloatField()
    active_at = models.DateTimeField()

    objects = OwnerShareQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["queue", "priority", "owner"], name="one_owner_share")
        ]

    def __str__(self) -> str:
        return f"{self.queue}, {self.priority:g}: {self.owner} at {self.virtual_time:g}"


_TASKS = GenerationTask._meta.db_table
_SHARES = OwnerShare._meta.db_table
_EQUAL = f"FROM {_TASKS} WHERE queue = %(queue)s AND priority = {{priority}} {{except_owner}}"
_SHARES_OF_PRIORITY = f"FROM {_SHARES} WHERE queue = %(queue)s AND priority = {{priority}}"

# The owners with pending tasks of a queue and priority, found one by one in the index, and when
# each comes: `key`, the lower the sooner. `present` is the virtual time at which a task was started
# last: of those that run, else of those that wait, else of all that was.
_WAITING = f"""
    SELECT MIN(owner) {_EQUAL} AND status = 'pending'
    UNION ALL
    SELECT (SELECT MIN(owner) {_EQUAL} AND status = 'pending' AND owner > waiting.owner)
    FROM waiting WHERE waiting.owner IS NOT NULL
"""  # noqa: S608 (our own names)
OWNERS = f"""
waiting (owner) AS ({_WAITING}), running (owner, num) AS MATERIALIZED (
    SELECT owner, COUNT(*) {_EQUAL} AND status = 'processing' GROUP BY owner
), shares AS MATERIALIZED (
    SELECT waiting.owner, COALESCE(share.virtual_time, 0) AS virtual_time,
        COALESCE(share.step, (SELECT AVG(step) {_SHARES_OF_PRIORITY}), 1) AS step,
        COALESCE(running.num, 0) AS num_running,
        CASE WHEN share.owner IS NULL THEN 0 WHEN running.num IS NOT NULL THEN 1
            WHEN share.active_at >= (
                SELECT MIN(created_at) {_EQUAL} AND status = 'pending' AND owner = waiting.owner
            ) THEN 1 ELSE 0 END AS is_busy
    FROM waiting
    LEFT JOIN {_SHARES} AS share ON share.owner = waiting.owner
        AND share.queue = %(queue)s AND share.priority = {{priority}}
    LEFT JOIN running ON running.owner = waiting.owner
    WHERE waiting.owner IS NOT NULL
), present (virtual_time) AS MATERIALIZED (
    SELECT COALESCE((
        SELECT MAX(share.virtual_time + (running.num - 1) * share.step)
        FROM running JOIN {_SHARES} AS share ON share.owner = running.owner
            AND share.queue = %(queue)s AND share.priority = {{priority}}
    ), (SELECT MIN(virtual_time) FROM shares WHERE is_busy = 1),
    (SELECT MAX(virtual_time) {_SHARES_OF_PRIORITY}), 0)
), keys AS MATERIALIZED (
    SELECT owner, step, num_running,
        CASE WHEN is_busy = 1 OR shares.virtual_time > present.virtual_time
            THEN shares.virtual_time + (num_running + 1) * step
            ELSE present.virtual_time END AS key,
        CASE WHEN is_busy = 1 OR shares.virtual_time > present.virtual_time
            THEN shares.virtual_time ELSE present.virtual_time END AS virtual_time
    FROM shares CROSS JOIN present
)"""  # noqa: S608 (our own names)


def owner_turns(queue: str, priority: float) -> dict[str, Turns]:
    """By owner with pending tasks of that queue and priority, when these come."""
    return _order(queue, priority)[1]


def _order(queue: str, priority: float) -> tuple[int, dict[str, Turns]]:
    """How many pending tasks are more urgent, _MAX_COUNTED at most; by owner its turns."""
    with connection.cursor() as cursor:
        cursor.execute(_ORDER, {"queue": queue, "priority": priority})
        rows = cursor.fetchall()
    return rows[0][0] if rows else 0, {owner: Turns(*row) for _, owner, *row in rows}


def _count_more_urgent(queue: str, priority: float) -> int:
    more_urgent = GenerationTask.objects.pending().filter(queue=queue, priority__gt=priority)
    return cached(f"more_urgent:{queue}:{priority}", _COUNTED_SECONDS, more_urgent.count)


def queue_positions(tasks: Iterable[GenerationTask]) -> dict[str, int]:
    """By id, how many pending tasks of the same queue go before each of those that are pending.

    As things are now: if all that are pending may start, each at its owner's usual cost, and no
    other comes. Where 1,000 or more are more urgent, their number is about a second old at most.
    """
    groups: defaultdict[tuple[str, float], list[GenerationTask]] = defaultdict(list)
    for task in tasks:
        if task.status == GenerationTask.Status.PENDING:
            groups[task.queue, task.priority].append(task)
    positions: dict[str, int] = {}
    for (queue, priority), group in groups.items():
        values: dict[str, Any] = {"queue": queue, "priority": priority}
        num_more_urgent, order = _order(queue, priority)
        if num_more_urgent == _MAX_COUNTED:
            num_more_urgent = _count_more_urgent(queue, priority)
        by_owner: defaultdict[str, list[GenerationTask]] = defaultdict(list)
        for task in group:
            by_owner[task.owner].append(task)
        for owner, own in by_owner.items():
            if owner not in order:  # it has been claimed meanwhile
                continue
            indexes = _indexes(values | {"owner": owner}, own)
            last = order[owner].key(max(indexes.values()))
            others = {other: turns for other, turns in order.items() if other != owner}
            most = max(
                (turns.num_before(last, other < owner) for other, turns in others.items()),
                default=0,
            )
            num_pending = _num_pending(values, most) if most else {}
            for pk, index in indexes.items():
                key = order[owner].key(index)
                positions[pk] = (
                    num_more_urgent
                    + index
                    + sum(
                        min(num_pending.get(other, 0), turns.num_before(key, other < owner))
                        for other, turns in others.items()
                    )
                )
    return positions


def _indexes(values: dict[str, Any], tasks: list[GenerationTask]) -> dict[str, int]:
    """By id, how many pending tasks of the same owner and priority go before each."""
    moments = sorted((task.created_at, task.pk) for task in tasks)
    made, pk = moments[0]
    values |= {"created_at": connection.ops.adapt_datetimefield_value(made), "id": pk}
    with connection.cursor() as cursor:
        cursor.execute(_BEFORE, values)
        num_before: int = cursor.fetchone()[0]
    ids = [pk]
    if len(moments) > 1:
        between = GenerationTask.objects.pending().filter(
            queue=values["queue"],
            priority=values["priority"],
            owner=values["owner"],
            created_at__range=(made, moments[-1][0]),
        )
        found = between.order_by("created_at", "id").values_list("created_at", "pk")
        ids = [moment[1] for moment in found if moment >= moments[0]]
    return {pk: index for index, pk in enumerate(ids, start=num_before)}


def _num_pending(values: dict[str, Any], most: int) -> dict[str, int]:
    """By owner, how many tasks are pending, counted up to the most that matter."""
    with connection.cursor() as cursor:
        cursor.execute(_COUNTS, values | {"most": most})
        return dict(cursor.fetchall())


_PENDING = f"FROM {_TASKS} WHERE status = 'pending' AND queue = %(queue)s"
_PENDING_EQUAL = f"{_PENDING} AND priority = %(priority)s"
_ORDER = f"""
WITH RECURSIVE {OWNERS.format(priority="%(priority)s", except_owner="")}
SELECT (SELECT COUNT(*) FROM (
    SELECT 1 {_PENDING} AND priority > %(priority)s LIMIT {_MAX_COUNTED}
) AS more_urgent), owner, key, virtual_time, step, num_running
FROM keys ORDER BY owner
"""  # noqa: S608
_COUNTS = f"""
WITH RECURSIVE waiting (owner) AS (
    {_WAITING.format(priority="%(priority)s", except_owner="")}
)
SELECT owner, (SELECT COUNT(*) FROM (
    SELECT 1 {_PENDING_EQUAL} AND owner = waiting.owner LIMIT %(most)s
) AS tasks)
FROM waiting WHERE owner IS NOT NULL
"""  # noqa: S608
_BEFORE = f"""
SELECT (SELECT COUNT(*) {_PENDING_EQUAL} AND owner = %(owner)s AND created_at < %(created_at)s) + (
    SELECT COUNT(*) {_PENDING_EQUAL} AND owner = %(owner)s AND created_at = %(created_at)s
        AND id < %(id)s
)
"""
