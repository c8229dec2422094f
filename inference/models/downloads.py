"""Files of models that are to be brought from the hub, and how far they are."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import models, transaction
from django.db.models import F
from django.db.models.functions import Now

from inference.models.claimable import UNHELD, Claimable, ClaimableQuerySet
from inference.models.registered_models import RegisteredModel

Status = RegisteredModel.Status


class ModelDownloadQuerySet(ClaimableQuerySet["ModelDownload"]):
    def claim_next(self, worker: str) -> "ModelDownload | None":
        """Take the one that has waited longest, and clear the message of its model."""
        download = super().claim_next(worker)
        if download is not None:
            RegisteredModel.objects.filter(pk=download.pk).update(status_message="")
        return download


class ModelDownload(Claimable):
    """The file of a model on its way. While it is, the model's status is `downloading`.

    registered | error ──start──▶ downloading ──▶ available | error

    It neither waits nor is held when nothing is to be done. Deleting the model deletes the row,
    which ends the download.
    """

    # In one process, whose threads do other work as well.
    MAX_AT_ONCE = 2

    model = models.OneToOneField(
        RegisteredModel, on_delete=models.CASCADE, primary_key=True, related_name="download"
    )
    num_failures = models.PositiveIntegerField(default=0)  # since the last byte that arrived
    downloaded_bytes = models.PositiveBigIntegerField(default=0)
    total_bytes = models.PositiveBigIntegerField(null=True, blank=True)

    objects = ModelDownloadQuerySet.as_manager()

    if TYPE_CHECKING:
        model_id: int

    class Meta:
        indexes = [
            *Claimable.Meta.indexes,
            models.Index(fields=["due_at"], name="download_due"),
        ]

    def __str__(self) -> str:
        return f"download of {self.model}"

    @classmethod
    def start(cls, model: RegisteredModel) -> bool:
        """Make it due. False when it is under way already, or the model needs none."""
        with transaction.atomic():
            rows = RegisteredModel.objects.filter(
                pk=model.pk, status__in=[Status.REGISTERED, Status.DOWNLOADING, Status.ERROR]
            )
            # Written first, so that two who start it take turns.
            if not rows.update(status=Status.DOWNLOADING):
                return False
            download, _ = cls.objects.get_or_create(model=model)
            if download.due_at is not None or download.lease_until is not None:
                return False
            cls.objects.filter(pk=model.pk).update(due_at=Now(), num_failures=0)
            rows.update(status_message="", updated_at=Now())
        return True

    def store_progress(self, downloaded_bytes: int, total_bytes: int | None) -> bool:
        """Store the progress. False when the model was deleted, or another worker has it."""
        if downloaded_bytes > self.downloaded_bytes:
            self.num_failures = 0
        self.downloaded_bytes = downloaded_bytes
        return bool(
            self._mine().update(
                num_failures=self.num_failures,
                downloaded_bytes=downloaded_bytes,
                total_bytes=total_bytes,
            )
        )

    def succeed(self, **facts: Any) -> bool:
        """The file is there; `facts` are fields of the model. False when the claim was lost."""
        return self._end(status=Status.AVAILABLE, status_message="", **facts)

    def fail(self, why: str) -> bool:
        """It will not arrive. False when the claim was lost."""
        return self._end(status=Status.ERROR, status_message=why)

    def put_off(self, seconds: float, why: str, *, is_failure: bool) -> bool:
        """Let any worker go on after a while; `why` shows meanwhile. False as above."""
        due_at = Now() + timedelta(seconds=seconds)
        num_failures = F("num_failures") + int(is_failure)
        with transaction.atomic():
            held = self._mine().update(due_at=due_at, num_failures=num_failures, **UNHELD)
            return bool(held and self._model().update(status_message=why, updated_at=Now()))

    def _end(self, **change: Any) -> bool:
        with transaction.atomic():
            held = self._mine().update(**UNHELD)
            return bool(held and self._model().update(**change, updated_at=Now()))

    def _mine(self) -> ModelDownloadQuerySet:
        return ModelDownload.objects.filter(
            pk=self.pk, attempt=self.attempt, lease_until__isnull=False
        )

    def _model(self) -> models.QuerySet[RegisteredModel]:
        return RegisteredModel.objects.filter(pk=self.pk)
