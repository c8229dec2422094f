"""Files of models that are to be brought from the hub, and how far they are."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import F
from django.db.models.functions import Now

from inference.models.registered_models import RegisteredModel

Status = RegisteredModel.Status


class ModelDownloadQuerySet(models.QuerySet["ModelDownload"]):
    def due(self) -> "ModelDownloadQuerySet":
        """To be gone on with now; also those whose worker was lost."""
        return self.filter(next_attempt_at__lte=Now())

    def claim_next(self, worker: str) -> "ModelDownload | None":
        """Take the one that has waited longest."""
        while model_id := self.due().values_list("pk", flat=True).first():
            with transaction.atomic():
                won = (
                    self.due()
                    .filter(pk=model_id)
                    .update(attempt=F("attempt") + 1, worker=worker, next_attempt_at=_lease_end())
                )
                if won:
                    RegisteredModel.objects.filter(pk=model_id).update(status_message="")
                    return self.select_related("model").get(pk=model_id)
        return None


class ModelDownload(models.Model):
    """The file of a model on its way. While it is, the model's status is `downloading`.

    registered | error ──start──▶ downloading ──▶ available | error

    Due at `next_attempt_at`, null when nothing is to be done. Whoever has claimed it puts that off
    as long as it is at it, or another worker goes on. `attempt`, which every claim counts up, is
    part of every write of a worker. Deleting the model deletes the row, which ends the download.
    """

    model = models.OneToOneField(
        RegisteredModel, on_delete=models.CASCADE, primary_key=True, related_name="download"
    )
    attempt = models.PositiveIntegerField(default=0)
    worker = models.CharField(max_length=255, blank=True)
    next_attempt_at = models.DateTimeField(null=True, blank=True)
    num_failures = models.PositiveIntegerField(default=0)  # since the last byte that arrived
    downloaded_bytes = models.PositiveBigIntegerField(default=0)
    total_bytes = models.PositiveBigIntegerField(null=True, blank=True)

    objects = ModelDownloadQuerySet.as_manager()

    if TYPE_CHECKING:
        model_id: int

    class Meta:
        ordering = ["next_attempt_at"]
        indexes = [models.Index(fields=["next_attempt_at"], name="download_due")]

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
            if download.next_attempt_at is not None:
                return False
            cls.objects.filter(pk=model.pk).update(next_attempt_at=Now(), num_failures=0)
            rows.update(status_message="", updated_at=Now())
        return True

    def renew(self, downloaded_bytes: int, total_bytes: int | None) -> bool:
        """Go on holding it. False when the model was deleted, or another worker has it."""
        if downloaded_bytes > self.downloaded_bytes:
            self.num_failures = 0
        self.downloaded_bytes = downloaded_bytes
        return bool(
            self._mine().update(
                next_attempt_at=_lease_end(),
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
        change = {"num_failures": F("num_failures") + is_failure, "worker": ""}
        with transaction.atomic():
            due = Now() + timedelta(seconds=seconds)
            held = self._mine().update(next_attempt_at=due, **change)
            return bool(held and self._model().update(status_message=why, updated_at=Now()))

    def _end(self, **change: Any) -> bool:
        with transaction.atomic():
            held = self._mine().update(next_attempt_at=None, worker="")
            return bool(held and self._model().update(**change, updated_at=Now()))

    def _mine(self) -> ModelDownloadQuerySet:
        return ModelDownload.objects.filter(pk=self.pk, attempt=self.attempt).exclude(worker="")

    def _model(self) -> models.QuerySet[RegisteredModel]:
        return RegisteredModel.objects.filter(pk=self.pk)


def _lease_end() -> Any:
    return Now() + timedelta(seconds=settings.LEASE_SECONDS)
