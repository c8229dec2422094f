"""Figures of ended tasks, for the statistics, and of what owners have used, for their limits."""

from datetime import date, timedelta
from typing import TypedDict

from django.db import models
from django.db.models.functions import Now
from django.utils import timezone

KEPT_DAYS = 7
USE_KEPT_DAYS = 396  # 13 months


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


class Use(TypedDict):
    """What an owner has used for some time."""

    num_tasks: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float


class OwnerUseQuerySet(models.QuerySet["OwnerUse"]):
    def today(self, owner: str) -> Use:
        """Since midnight, UTC."""
        return self._since(timezone.now().date(), owner)

    def this_month(self, owner: str) -> Use:
        """Since the first of the month, UTC."""
        return self._since(timezone.now().date().replace(day=1), owner)

    def _since(self, day: date, owner: str) -> Use:
        names = ("num_tasks", "prompt_tokens", "completion_tokens", "cost_nano_usd")
        sums = {name: models.Sum(name, default=0) for name in names}
        used = self.filter(owner=owner, day__gte=day).aggregate(**sums)
        return Use(
            num_tasks=used["num_tasks"],
            prompt_tokens=used["prompt_tokens"],
            completion_tokens=used["completion_tokens"],
            cost_usd=used["cost_nano_usd"] / 1e9,
        )

    def purge(self) -> int:
        """Delete the rows that are older than USE_KEPT_DAYS; returns how many."""
        first = timezone.now().date() - timedelta(days=USE_KEPT_DAYS)
        return self.filter(day__lt=first).delete()[0]


class OwnerUse(models.Model):
    """What an owner has used on a day, UTC; written in the transactions that end attempts."""

    owner = models.CharField(max_length=64)
    day = models.DateField(db_index=True)
    num_tasks = models.PositiveBigIntegerField()
    prompt_tokens = models.PositiveBigIntegerField()
    completion_tokens = models.PositiveBigIntegerField()
    # Of calls of cloud models whose price is known, in billionths of a dollar.
    cost_nano_usd = models.PositiveBigIntegerField(db_default=0)

    objects = OwnerUseQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["owner", "day"], name="one_row_per_owner_and_day")
        ]

    def __str__(self) -> str:
        return f"{self.owner} on {self.day}: {self.num_tasks} tasks"
