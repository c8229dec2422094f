"""Batches: the lines of an uploaded file, each a request, and how far a batch is with them."""

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypedDict

from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from inference.models.claimable import UNHELD, Claimable, ClaimableQuerySet
from inference.models.files import StoredFile, file_expiry
from inference.models.tasks import GenerationTask, protect_unfinished


class BatchError(TypedDict):
    """What is wrong with a line of the input; `param`: the field of the body, if it is one."""

    code: str
    line: int | None
    message: str
    param: str | None


def new_batch_id() -> str:
    return f"batch_{uuid.uuid4().hex}"


class BatchQuerySet(ClaimableQuerySet["Batch"]):
    def owned_by(self, owner: str) -> Self:
        return self.filter(owner=owner)

    def unfinished(self) -> Self:
        return self.filter(finished_at__isnull=True)

    def held_by(self, worker: str) -> dict[str, tuple[int, bool]]:
        """As of any row; a cancel is a status."""
        held = self.filter(worker=worker, lease_until__isnull=False)
        return {
            pk: (attempt, status == Batch.Status.CANCELLING)
            for pk, attempt, status in held.values_list("pk", "attempt", "status")
        }

    def cancel(self) -> int:
        """Have workers cancel what has not ended; returns in how many there is such a thing."""
        return self.filter(status__in=Batch.CANCELLABLE).update(
            status=Batch.Status.CANCELLING,
            stop_reason=Batch.StopReason.CANCELLED,
            cancelling_at=Now(),
        )

    def purge(self, limit: int = 1000) -> int:
        """Delete up to `limit` rows that are past their time to live; returns how many."""
        ids = list(self.filter(expires_at__lte=Now()).values_list("pk", flat=True)[:limit])
        self.filter(pk__in=ids).delete()
        return len(ids)


class Batch(Claimable):
    """A file of requests that become tasks, a window of them at a time.

    validating ──▶ in_progress ──▶ finalizing ──▶ completed | expired | cancelled
        │   └────────────┴──▶ cancelling ──┘
        └──▶ failed

    A worker claims it for a moment, again and again: `input_offset` says up to where its lines are
    submitted, `output_bytes` and `error_bytes` how much of its files counts. While it is validated,
    the lines up to `input_line` are checked; `num_lost` workers were lost at those that follow.
    """

    class Status(models.TextChoices):
        VALIDATING = "validating"
        FAILED = "failed"
        IN_PROGRESS = "in_progress"
        FINALIZING = "finalizing"
        COMPLETED = "completed"
        EXPIRED = "expired"
        CANCELLING = "cancelling"
        CANCELLED = "cancelled"

    class StopReason(models.TextChoices):
        """Why no more lines are submitted, as the error of those that were not."""

        EXPIRED = "batch_expired"
        CANCELLED = "batch_cancelled"

    CANCELLABLE = (Status.VALIDATING, Status.IN_PROGRESS)

    # In one process, whose threads do other work as well.
    MAX_AT_ONCE = 3
    waiting_fields: ClassVar[dict[str, Any]] = {"num_lost": F("num_lost") + 1}

    id = models.CharField(primary_key=True, max_length=38, default=new_batch_id)
    owner = models.CharField(max_length=64)
    status = models.CharField(max_length=11, choices=Status.choices, default=Status.VALIDATING)
    stop_reason = models.CharField(max_length=15, choices=StopReason.choices, blank=True)
    endpoint = models.CharField(max_length=50)
    completion_window = models.CharField(max_length=10)
    metadata = models.JSONField(default=dict, blank=True)
    priority = models.FloatField(default=0.0)
    # Those of the key that has made it, as `Limits` takes them.
    limits = models.JSONField(default=dict, blank=True)
    # That of the principal who has made it: once that is revoked, the batch is cancelled.
    credential = models.CharField(max_length=160, blank=True)
    webhook_url = models.TextField(blank=True)
    input_file = models.ForeignKey(
        StoredFile, null=True, on_delete=protect_unfinished, related_name="+"
    )
    output_file = models.ForeignKey(
        StoredFile, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    error_file = models.ForeignKey(
        StoredFile, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    # Names a file that is deleted, too.
    input_file_name = models.CharField(max_length=37)

    created_at = models.DateTimeField()
    in_progress_at = models.DateTimeField(null=True, blank=True)
    finalizing_at = models.DateTimeField(null=True, blank=True)
    cancelling_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    deadline_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)

    errors = models.JSONField(default=list, blank=True)
    num_requests = models.PositiveIntegerField(default=0)
    num_completed = models.PositiveIntegerField(default=0)
    num_failed = models.PositiveIntegerField(default=0)
    input_offset = models.PositiveBigIntegerField(default=0)
    input_line = models.PositiveIntegerField(default=0)
    num_lost = models.PositiveIntegerField(default=0)
    output_bytes = models.PositiveBigIntegerField(default=0)
    error_bytes = models.PositiveBigIntegerField(default=0)

    objects = BatchQuerySet.as_manager()

    if TYPE_CHECKING:
        output_file_id: str | None
        error_file_id: str | None

    class Meta:
        verbose_name_plural = "batches"
        indexes = [
            *Claimable.Meta.indexes,
            models.Index(fields=["due_at"], name="batch_due", condition=Q(due_at__isnull=False)),
            models.Index(fields=["owner", "-created_at", "-id"], name="batch_list"),
            models.Index(
                fields=["finished_at"], name="batch_open", condition=Q(finished_at__isnull=True)
            ),
            models.Index(
                fields=["expires_at"], name="batch_purge", condition=Q(expires_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id} ({self.status})"

    @property
    def has_ended(self) -> bool:
        return self.finished_at is not None

    @property
    def progress(self) -> str:
        """How many of its requests have an answer."""
        return f"{self.num_completed + self.num_failed} of {self.num_requests}"

    def cancel(self) -> bool:
        """Have a worker cancel what has not ended. False when there is nothing to cancel."""
        return bool(Batch.objects.filter(pk=self.pk).cancel())

    def store(self, *, if_status: str | None = None, **change: Any) -> bool:
        """Change the row and this object, while the worker that claimed it still holds it.

        False when it does not, or the status is another one by now.
        """
        mine = Batch.objects.filter(pk=self.pk, attempt=self.attempt, lease_until__isnull=False)
        if if_status is not None:
            mine = mine.filter(status=if_status)
        with transaction.atomic():
            if not mine.update(**change):
                return False
        for name, value in change.items():
            setattr(self, name, value)
        return True

    def put_back(self, seconds: float) -> bool:
        """Let any worker go on after a while. False when the claim was lost."""
        return self.store(due_at=Now() + timedelta(seconds=seconds), **UNHELD)

    def end(self, status: str, **change: Any) -> bool:
        """Nothing is left to do. False when the claim was lost."""
        times = {"finished_at": Now(), "expires_at": file_expiry()}
        return self.store(status=status, **times, **UNHELD, **change)


class BatchTaskQuerySet(models.QuerySet["BatchTask"]):
    def unfinished(self) -> Self:
        return self.filter(task__status__in=GenerationTask.UNFINISHED)


class BatchTask(models.Model):
    """A task of a line that is submitted, and whose answer is not written yet.

    Without a task, `error` has the fields of its answer that say why. A line that asks for several
    choices has a row for each.
    """

    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="tasks")
    line = models.PositiveIntegerField()
    custom_id = models.TextField()
    # A task may be deleted before its answer is written.
    task = models.ForeignKey(
        GenerationTask,
        null=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="+",
    )
    num_choices = models.PositiveIntegerField(default=1)  # of each prompt of the line
    error = models.JSONField(null=True, blank=True)

    objects = BatchTaskQuerySet.as_manager()

    if TYPE_CHECKING:
        task_id: str | None

    def __str__(self) -> str:
        return f"{self.batch_id} line {self.line}"
