"""The progress of a download, in events and in its row, and whether to go on."""

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
from inference.registry.downloads import stopping

logger = logging.getLogger(__name__)

_EVENT_SECONDS = 0.5
_NUM_EVENTS_PER_STORE = 2


class NotWantedError(Exception):
    """The model was deleted, another worker has the download, or this process stops."""


class DownloadProgress:
    """The progress of a claimed download, published by a thread while connections are silent.

    The download sets `downloaded_bytes` and `total_bytes`, and calls `check` between chunks.
    """

    def __init__(self, download: ModelDownload) -> None:
        self.name = download.model.name
        self.downloaded_bytes = download.downloaded_bytes
        self.total_bytes = download.total_bytes
        self._download = download
        self._ended = threading.Event()
        self._held = HeldRow(download)
        self._thread = threading.Thread(target=self._publish, name="download", daemon=True)

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

    def send_event(
        self, status: RegisteredModel.Status, bytes_per_second: float | None = None
    ) -> None:
        events.download_progressed(
            self.name, status, self.downloaded_bytes, self.total_bytes, bytes_per_second
        )

    def _publish(self) -> None:
        sent_bytes, sent_at, num_rounds = self.downloaded_bytes, time.monotonic(), 0
        try:
            while not self._ended.wait(_EVENT_SECONDS):
                num_rounds += 1
                if num_rounds % _NUM_EVENTS_PER_STORE == 0:
                    try:
                        self._download.store_progress(self.downloaded_bytes, self.total_bytes)
                    except DatabaseError as exc:
                        logger.warning("Model %s: its progress is not stored: %s", self.name, exc)
                        connection.close()  # Django reopens broken ones between requests only
                now, num_bytes = time.monotonic(), self.downloaded_bytes
                if num_bytes != sent_bytes:
                    speed = (num_bytes - sent_bytes) / (now - sent_at)
                    self.send_event(RegisteredModel.Status.DOWNLOADING, max(0.0, round(speed, 1)))
                sent_bytes, sent_at = num_bytes, now
        finally:
            connection.close()  # the thread's own
