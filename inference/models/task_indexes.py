"""The indexes of tasks: for their lists, claims, sweep and purge."""

from django.db import models
from django.db.models import F, Q

INDEXES = [
    models.Index(fields=["owner", "-created_at", "-id"], name="task_list"),
    models.Index(fields=["-created_at", "-id"], name="task_list_of_all"),
    # For the filters of these lists. Those of a status are partial: SQLite would claim by an index
    # of all statuses. `pending` and `completed` are read from the lists.
    *(
        models.Index(
            fields=["owner", "-created_at", "-id"],
            name=f"task_{status}",
            condition=Q(status=status),
        )
        for status in ("processing", "failed", "cancelled")
    ),
    *(
        models.Index(
            fields=["-created_at", "-id"],
            name=f"task_{status}_of_all",
            condition=Q(status=status),
        )
        for status in ("failed", "cancelled")
    ),
    models.Index(fields=["requested_model", "owner", "-created_at", "-id"], name="task_requested"),
    # The last columns are there so that SQLite skips and counts rows without the table.
    models.Index(
        F("queue"),
        F("priority").desc(),
        F("owner"),
        F("created_at"),
        F("id"),
        F("model_name"),
        F("max_running"),
        F("status"),
        name="task_claim",
        condition=Q(status="pending"),
    ),
    # For tasks that may join a session of their model. The queue is first, as above: PostgreSQL
    # would read the other index to its end where the model has no task.
    models.Index(
        F("queue"),
        F("model_name"),
        F("priority").desc(),
        F("owner"),
        F("created_at"),
        F("id"),
        name="task_model",
        condition=Q(status="pending"),
    ),
    models.Index(fields=["owner"], name="task_pending_of", condition=Q(status="pending")),
    # For the sweep, which enqueues them.
    models.Index(
        fields=["queue"],
        name="task_unsent",
        condition=Q(status="pending", enqueued_at__isnull=True),
    ),
    # For what runs of each owner.
    models.Index(
        fields=["queue", "priority", "owner", "status"],
        name="task_share",
        condition=Q(status="processing"),
    ),
    # For owners who may have so many tasks running; with the status, it is all that a claim reads.
    models.Index(
        fields=["owner", "max_running", "status"],
        name="task_running",
        condition=Q(status="processing", max_running__isnull=False),
    ),
    # For owners who may spend so much.
    models.Index(
        fields=["owner", "reserved_nano_usd"],
        name="task_reserved",
        condition=Q(status="processing", reserved_nano_usd__isnull=False),
    ),
    models.Index(
        fields=["deadline_at"],
        name="task_deadline",
        condition=Q(status="pending", deadline_at__isnull=False),
    ),
    models.Index(
        fields=["conversation", "created_at"],
        name="task_conversation",
        condition=Q(status__in=["pending", "processing"]),
    ),
    models.Index(fields=["expires_at"], name="task_purge", condition=Q(expires_at__isnull=False)),
    models.Index(
        fields=["owner", "-created_at", "-id"],
        name="task_dead",
        condition=Q(status="failed", requeued_as__isnull=True),
    ),
]
