"""The attempts at tasks that have ended."""

from datetime import timedelta
from typing import Self

from django.db import models
from django.db.models.functions import Now

from inference.models.costs import Costly

# Longer than a death can go unnoticed; the number of a process may come again.
_RECENT = timedelta(minutes=1)


class TaskAttemptQuerySet(models.QuerySet["TaskAttempt"]):
    def lost_with(self, worker: str) -> Self:
        """Those lost of late with a process, by what its identity starts with."""
        of_worker = self.filter(worker__startswith=worker, outcome=TaskAttempt.Outcome.LOST)
        return of_worker.filter(ended_at__gte=Now() - _RECENT)


class TaskAttempt(Costly):
    """One try at a task by one worker, that has ended; a running one is in the task's own row."""

    class Outcome(models.TextChoices):
        COMPLETED = "completed"
        FAILED = "failed"
        CANCELLED = "cancelled"
        LOST = "lost"

    task = models.ForeignKey("GenerationTask", on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    worker = models.CharField(max_length=255)
    model_name = models.CharField(max_length=100)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField()
    outcome = models.CharField(max_length=9, choices=Outcome.choices)
    error = models.TextField(null=True, blank=True)
    error_code = models.CharField(max_length=64, null=True, blank=True)
    # Which one of a cloud model was asked last.
    endpoint = models.CharField(max_length=255, null=True, blank=True)
    # A `Provenance`; null unless a local model was asked.
    provenance = models.JSONField(null=True, blank=True)
    # The `id` of the last message that it has read of its conversation.
    history_end = models.BigIntegerField(null=True, blank=True)

    objects = TaskAttemptQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["task", "number"], name="one_row_per_attempt")
        ]

    def __str__(self) -> str:
        return f"{self.task_id} #{self.number}: {self.outcome}"
