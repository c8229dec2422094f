"""Webhooks to be delivered, and the results of their delivery."""

import uuid
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict
from urllib.parse import urlsplit

from django.conf import settings
from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Now

from inference.models.batches import Batch
from inference.models.claimable import UNHELD, Claimable, ClaimableQuerySet
from inference.models.tasks import GenerationTask

GIVE_UP_AFTER = timedelta(hours=24)
_MAX_LOG = 50


class DeliveryLogEntry(TypedDict):
    """One attempt: the answer's status, or why there was none. A lost worker leaves no entry."""

    attempt: int
    at: str
    status_code: int | None
    error: str | None
    duration_ms: float


def new_webhook_id() -> str:
    return f"whk_{uuid.uuid4().hex}"


class WebhookDeliveryQuerySet(ClaimableQuerySet["WebhookDelivery"]):
    def deliver_again(self) -> int:
        """Make them due, under their old ids, unless they are being delivered; returns how many."""
        return self.exclude(status=WebhookDelivery.Status.DELIVERING).update(
            status=WebhookDelivery.Status.PENDING,
            due_at=Now(),
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


class WebhookDelivery(Claimable):
    """One webhook about the end of a task or a batch, written in the transaction that ended it.

    pending ──claim──▶ delivering ──▶ delivered | failed
       ▲                   │               │
       └──to be retried────┘               │
       └──────────deliver again────────────┘

    The receiver knows it by its id, which every attempt repeats. It outlives its task or batch.
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
        RESPONSE_COMPLETED = "response.completed"
        RESPONSE_INCOMPLETE = "response.incomplete"
        RESPONSE_FAILED = "response.failed"
        RESPONSE_CANCELLED = "response.cancelled"
        BATCH_COMPLETED = "batch.completed"
        BATCH_FAILED = "batch.failed"
        BATCH_EXPIRED = "batch.expired"
        BATCH_CANCELLED = "batch.cancelled"

    # First attempts go before retries.
    claim_order = ("attempt", "due_at")
    claimed_fields: ClassVar[dict[str, Any]] = {"status": Status.DELIVERING}
    waiting_fields: ClassVar[dict[str, Any]] = {"status": Status.PENDING}
    lease_seconds = 20  # twice as long as an attempt may take

    id = models.CharField(primary_key=True, max_length=36, default=new_webhook_id)
    # Keeps naming a task that is deleted.
    task = models.ForeignKey(
        GenerationTask,
        null=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="webhook_deliveries",
    )
    batch = models.ForeignKey(
        Batch, null=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+"
    )
    owner = models.CharField(max_length=64)  # whose secret signs
    url = models.TextField()
    event = models.CharField(max_length=20, choices=Event.choices)
    payload = models.TextField()
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    give_up_at = models.DateTimeField()
    log = models.JSONField(default=list, blank=True)
    created_at = models.DateTimeField()
    delivered_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    objects = WebhookDeliveryQuerySet.as_manager()

    if TYPE_CHECKING:
        task_id: str | None
        batch_id: str | None

    class Meta:
        verbose_name_plural = "webhook deliveries"
        indexes = [
            *Claimable.Meta.indexes,
            models.Index(
                fields=["attempt", "due_at"], name="webhook_due", condition=Q(due_at__isnull=False)
            ),
            models.Index(
                fields=["expires_at"], name="webhook_purge", condition=Q(expires_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id} ({self.status})"

    @property
    def next_attempt_at(self) -> datetime | None:
        """When the next attempt is due, or would be if the worker were lost; None after the end."""
        return self.due_at or self.lease_until

    @property
    def subject_id(self) -> str:
        """That of the task or batch."""
        return self.task_id or self.batch_id or ""

    @property
    def host(self) -> str:
        """Where it goes, as logs may say it: the rest of the URL can hold a token."""
        return urlsplit(self.url).hostname or ""

    def succeed(self, entry: DeliveryLogEntry) -> bool:
        """The receiver has taken it. False when the claim was lost to another worker."""
        return self._store(
            entry, status=self.Status.DELIVERED, delivered_at=Now(), expires_at=_expiry()
        )

    def give_up(self, entry: DeliveryLogEntry) -> bool:
        """It will never be taken. False when the claim was lost to another worker."""
        return self._store(entry, status=self.Status.FAILED, expires_at=_expiry())

    def retry(self, entry: DeliveryLogEntry, seconds: float) -> bool:
        """Try again after a while. False when the claim was lost to another worker."""
        due_at = Now() + timedelta(seconds=seconds)
        return self._store(entry, status=self.Status.PENDING, due_at=due_at)

    def _store(self, entry: DeliveryLogEntry, **change: Any) -> bool:
        mine = WebhookDelivery.objects.filter(
            pk=self.pk, attempt=self.attempt, status=self.Status.DELIVERING
        )
        with transaction.atomic():
            return bool(mine.update(log=[*self.log, entry][-_MAX_LOG:], **UNHELD, **change))


def _expiry() -> Any:
    return Now() + timedelta(seconds=settings.TASK_TTL_SECONDS)
