"""Files that clients have uploaded, and those that batches write."""

import contextlib
import os
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from django.conf import settings
from django.db import models, transaction
from django.db.models import Sum
from django.db.models.functions import Now

# A file without a row is on its way, or its process was killed: then nothing writes to it any more.
_STRAY_SECONDS = 3600


def new_file_id() -> str:
    return f"file-{uuid.uuid4().hex}"


class StoredFileQuerySet(models.QuerySet["StoredFile"]):
    def owned_by(self, owner: str) -> Self:
        """Those that are complete."""
        return self.filter(owner=owner, size_bytes__isnull=False)

    def total_bytes(self) -> int:
        return self.aggregate(total=Sum("size_bytes"))["total"] or 0

    def purge(self, limit: int = 1000) -> int:
        """Delete up to `limit` files past their time to live that no batch reads; returns how many.

        And what killed processes have left in FILES_DIR.
        """
        num_removed = 0
        for file in self.filter(expires_at__lte=Now())[:limit]:
            with contextlib.suppress(models.ProtectedError):
                file.remove()
                num_removed += 1
        self._remove_strays()
        return num_removed

    def _remove_strays(self) -> None:
        long_ago = time.time() - _STRAY_SECONDS
        for path in Path(settings.FILES_DIR).iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if path.stat().st_mtime < long_ago and not self.filter(pk=path.name).exists():
                    path.unlink()


class StoredFile(models.Model):
    """A file in FILES_DIR, by its id. `size_bytes` is null until it is complete."""

    class Purpose(models.TextChoices):
        BATCH = "batch"
        BATCH_OUTPUT = "batch_output"

    id = models.CharField(primary_key=True, max_length=37, default=new_file_id)
    owner = models.CharField(max_length=64)
    purpose = models.CharField(max_length=12, choices=Purpose.choices)
    filename = models.CharField(max_length=255)
    size_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)

    objects = StoredFileQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["owner", "-created_at", "-id"], name="file_list"),
            models.Index(fields=["expires_at"], name="file_purge"),
        ]

    def __str__(self) -> str:
        return f"{self.id} ({self.filename})"

    @property
    def path(self) -> Path:
        return Path(settings.FILES_DIR) / self.pk

    def write(self, offset: int, data: bytes) -> None:
        """Have the data on the disk at that place; only its owner may read a new file."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while data:
                num_written = os.pwrite(descriptor, data, offset)
                data, offset = data[num_written:], offset + num_written
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def complete(self, size_bytes: int) -> None:
        """End it there, and show it to its owner; without content, delete it."""
        if not size_bytes:
            self.remove()
            return
        os.truncate(self.path, size_bytes)
        StoredFile.objects.filter(pk=self.pk).update(
            size_bytes=size_bytes, expires_at=file_expiry()
        )

    def remove(self) -> None:
        """Delete the row, then the file: what has a row can be read.

        Raises ProtectedError while a batch reads it.
        """
        pk, path = self.pk, self.path
        with transaction.atomic():
            StoredFile.objects.select_for_update().filter(pk=pk).first()  # no batch begins with it
            self.delete()
        path.unlink(missing_ok=True)
        self.pk = pk


def file_expiry() -> Any:
    return Now() + timedelta(seconds=settings.FILE_TTL_SECONDS)
