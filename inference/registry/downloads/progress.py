"""How far a download is: told to whoever watches, kept in its row, and whether it is to go on."""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from django.db import Error as DatabaseError
from django.db import connection

from inference import events
from inference.lifecycle import lease_renewer
from inference.lifecycle.lease_renewer import HeldRow
from inference.models import ModelDownload, RegisteredModel
from inference.registry.downloads.errors import NotWantedError
from inference.registry.downloads.requests import stopping

logger = logging.getLogger(__name__)

_TELL_SECONDS = 0.5
# Every how many of those the row is written.
_STORE_EVERY = 2


class Progress:
    """Of a claimed download, told by a thread of its own: a connection can be silent for long.

    Who brings the file sets `downloaded_bytes` and `total_bytes`, and calls `check` all the time.
    """

    def __init__(self, download: ModelDownload) -> None:
        self.name = download.model.name
        self.downloaded_bytes = download.downloaded_bytes
        self.total_bytes = download.total_bytes
        self._download = download
        self._ended = threading.Event()
        self._held = HeldRow(download)
        self._thread = threading.Thread(target=self._keep, name="download", daemon=True)

    def __enter__(self) -> Self:
        lease_renewer.hold(self._held)
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        lease_renewer.release(self._held)

    def check(self) -> None:
        """Raises NotWantedError when the download is not to go on here."""
        if self._held.lost or stopping.is_set():
            raise NotWantedError

    def is_deleted(self) -> bool:
        """Whether the model is gone."""
        return not RegisteredModel.objects.filter(pk=self._download.pk).exists()

    def wait(self, seconds: float) -> None:
        """Pause, no longer than the download is wanted."""
        give_up_at = time.monotonic() + seconds
        while time.monotonic() < give_up_at:
            self.check()
            time.sleep(0.05)

    def tell(self, status: "RegisteredModel.Status", bytes_per_second: float | None = None) -> None:
        """Tell whoever watches."""
        events.download_progressed(
            *(self.name, status, self.downloaded_bytes, self.total_bytes, bytes_per_second)
        )

    def _keep(self) -> None:
        told, told_at, num_rounds = self.downloaded_bytes, time.monotonic(), 0
        try:
            while not self._ended.wait(_TELL_SECONDS):
                num_rounds += 1
                if num_rounds % _STORE_EVERY == 0:
                    self._store()
                now, num_bytes = time.monotonic(), self.downloaded_bytes
                if num_bytes != told:
                    speed = (num_bytes - told) / (now - told_at)
                    self.tell(RegisteredModel.Status.DOWNLOADING, max(0.0, round(speed, 1)))
                told, told_at = num_bytes, now
        finally:
            connection.close()  # the thread's own

    def _store(self) -> None:
        try:
            self._download.store_progress(self.downloaded_bytes, self.total_bytes)
        except DatabaseError as exc:
            logger.warning("Model %s: its progress is not stored: %s", self.name, exc)
            connection.close()  # nobody else opens a broken one anew in this thread
