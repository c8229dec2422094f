"""Figures of ended tasks, for the statistics."""

from datetime import timedelta

from django.db import models
from django.db.models.functions import Now

KEPT_DAYS = 7


class EndedTaskQuerySet(models.QuerySet["EndedTask"]):
    def purge(self, limit: int = 1000) -> int:
        """Delete up to `limit` rows that are older than KEPT_DAYS; returns how many."""
        old = self.filter(ended_at__lt=Now() - timedelta(days=KEPT_DAYS))
        ids = list(old.values_list("pk", flat=True)[:limit])
        self.filter(pk__in=ids).delete()
        return len(ids)


class EndedTask(models.Model):
    """The figures of one task, written in the transaction that ended it; outlives the task.

    Times are null for what the task never reached; `total_ms` also for one that its worker lost.
    """

    class Outcome(models.TextChoices):
        COMPLETED = "completed"
        FAILED = "failed"
        CANCELLED = "cancelled"

    # "" in rows from before ends were counted by owner.
    owner = models.CharField(max_length=64, db_default="")
    model_name = models.CharField(max_length=100)
    outcome = models.CharField(max_length=9, choices=Outcome.choices)
    ended_at = models.DateTimeField(db_index=True)
    prompt_tokens = models.PositiveIntegerField()
    completion_tokens = models.PositiveIntegerField()
    cached_tokens = models.PositiveIntegerField()
    queue_wait_ms = models.FloatField(null=True)
    ttft_ms = models.FloatField(null=True)
    inference_ms = models.FloatField(null=True)
    total_ms = models.FloatField(null=True)

    objects = EndedTaskQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["owner", "ended_at"], name="ended_of_owner")]

    def __str__(self) -> str:
        return f"{self.model_name}: {self.outcome} at {self.ended_at}"
