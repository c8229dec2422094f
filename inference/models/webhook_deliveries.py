"""Webhooks that are to be delivered, and what became of them."""

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import urlsplit

from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from inference.models.tasks import GenerationTask

GIVE_UP_AFTER = timedelta(hours=24)
# Twice as long as an attempt may take: whoever holds a delivery longer than that is gone.
_LEASE = timedelta(seconds=20)
_MAX_LOG = 50


class LogEntry(TypedDict):
    """One attempt: the answer's status, or why there was none. A lost worker leaves no entry."""

    attempt: int
    at: str
    status_code: int | None
    error: str | None
    duration_ms: float


def new_webhook_id() -> str:
    return f"whk_{uuid.uuid4().hex}"


class WebhookDeliveryQuerySet(models.QuerySet["WebhookDelivery"]):
    def due(self) -> "WebhookDeliveryQuerySet":
        """To be attempted now; also those whose worker was lost while it delivered them."""
        return self.filter(status__in=WebhookDelivery.OPEN, next_attempt_at__lte=Now())

    def claim_next(self) -> "WebhookDelivery | None":
        """Take the one that goes first: new ones before those that have failed already."""
        in_order = self.due().order_by("num_attempts", "next_attempt_at")
        while webhook_id := in_order.values_list("pk", flat=True).first():
            with transaction.atomic():
                won = (
                    self.due()
                    .filter(pk=webhook_id)
                    .update(
                        status=WebhookDelivery.Status.DELIVERING,
                        num_attempts=F("num_attempts") + 1,
                        next_attempt_at=Now() + _LEASE,
                    )
                )
            if won:
                return self.get(pk=webhook_id)
        return None

    def deliver_again(self) -> int:
        """Make them due, under their old ids, unless they are being delivered; returns how many."""
        return self.exclude(status=WebhookDelivery.Status.DELIVERING).update(
            status=WebhookDelivery.Status.PENDING,
            next_attempt_at=Now(),
            give_up_at=Now() + GIVE_UP_AFTER,
            delivered_at=None,
            expires_at=None,
        )

    def purge(self, limit: int = 1000) -> int:
        """Delete up to `limit` rows that are past their time to live; returns how many."""
        expired = self.filter(expires_at__lte=Now()).values_list("pk", flat=True)
        ids = list(expired[:limit])
        self.filter(pk__in=ids).delete()
        return len(ids)


class WebhookDelivery(models.Model):
    """What its receiver is to be told of a task's end, written in the transaction that ended it.

    pending ──claim──▶ delivering ──▶ delivered | failed
       ▲                   │               │
       └──to be retried────┘               │
       └──────────deliver again────────────┘

    Whoever delivers must be done by `next_attempt_at`, or another worker may claim it. The number
    of the attempt is part of every write of a worker. The receiver knows it by its id, which
    every attempt repeats. It outlives its task.
    """

    class Status(models.TextChoices):
        PENDING = "pending"
        DELIVERING = "delivering"
        DELIVERED = "delivered"
        FAILED = "failed"

    class Event(models.TextChoices):
        COMPLETED = "task.completed"
        FAILED = "task.failed"
        CANCELLED = "task.cancelled"

    OPEN = (Status.PENDING, Status.DELIVERING)

    id = models.CharField(primary_key=True, max_length=36, default=new_webhook_id)
    # Keeps naming a task that is deleted.
    task = models.ForeignKey(
        GenerationTask,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="webhook_deliveries",
    )
    url = models.TextField()
    event = models.CharField(max_length=20, choices=Event.choices)
    payload = models.TextField()
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    num_attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True, blank=True)
    give_up_at = models.DateTimeField()
    log = models.JSONField(default=list, blank=True)
    created_at = models.DateTimeField()
    delivered_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    objects = WebhookDeliveryQuerySet.as_manager()

    if TYPE_CHECKING:
        task_id: str

    class Meta:
        verbose_name_plural = "webhook deliveries"
        indexes = [
            models.Index(
                fields=["num_attempts", "next_attempt_at"],
                name="webhook_due",
                condition=Q(status__in=["pending", "delivering"]),
            ),
            models.Index(
                fields=["expires_at"], name="webhook_purge", condition=Q(expires_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id} ({self.status})"

    @property
    def host(self) -> str:
        """Where it goes, as logs may say it: the rest of the URL can hold a token."""
        return urlsplit(self.url).hostname or ""

    def succeed(self, entry: LogEntry) -> bool:
        """The receiver has taken it. False when the claim was lost to another worker."""
        return self._store(entry, status=self.Status.DELIVERED, delivered_at=Now(), **_end())

    def give_up(self, entry: LogEntry) -> bool:
        """It will never be taken. False when the claim was lost to another worker."""
        return self._store(entry, status=self.Status.FAILED, **_end())

    def retry(self, entry: LogEntry, seconds: float) -> bool:
        """Try again after a while. False when the claim was lost to another worker."""
        next_attempt_at = Now() + timedelta(seconds=seconds)
        return self._store(entry, status=self.Status.PENDING, next_attempt_at=next_attempt_at)

    def _store(self, entry: LogEntry, **change: Any) -> bool:
        mine = WebhookDelivery.objects.filter(
            pk=self.pk, num_attempts=self.num_attempts, status=self.Status.DELIVERING
        )
        with transaction.atomic():
            return bool(mine.update(log=[*self.log, entry][-_MAX_LOG:], **change))


def _end() -> dict[str, Any]:
    expires_at = Now() + timedelta(seconds=settings.TASK_TTL_SECONDS)
    return {"next_attempt_at": None, "expires_at": expires_at}
