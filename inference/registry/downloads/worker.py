"""Downloading what is due, in the default worker alone."""

import errno
import hashlib
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from rest_framework.exceptions import ValidationError

from inference import dispatch
from inference.loading import file_hashes
from inference.models import ModelDownload, ModelFile, RegisteredModel
from inference.registry import registration
from inference.registry.downloads import hub, partial_path, stopping, target_path
from inference.registry.downloads.hub import DownloadError, RemoteFile
from inference.registry.downloads.partial_file import FileBusyError, PartialFile, read_chunks
from inference.registry.downloads.progress import DownloadProgress, NotWantedError
from inference.retries import backoff_seconds
from monitoring.api.errors import in_words

logger = logging.getLogger(__name__)

# Kept free on the disk, where the database and the logs may be as well.
RESERVE_BYTES = 512 * 1024 * 1024
# With the backoff, about eight minutes without a byte.
_MAX_FAILURES = 12
_MAX_WAIT_SECONDS = 60.0
_BUSY_SECONDS = 5.0
_TIMEOUT = httpx.Timeout(10.0, read=30.0)
_RECONNECT_SECONDS = 0.5
# A download that is slower for so long gives its slot to another one.
_MIN_BYTES_PER_SECOND = 1024
_MEASURED_SECONDS = 60.0
_GO_ON = "load the model to go on with its download"

_slots = threading.BoundedSemaphore(ModelDownload.MAX_AT_ONCE)


def download_due() -> None:
    """Download the file that has waited longest, if a slot is free, and enqueue the next one."""
    if not stopping.is_set():
        dispatch.run_due(ModelDownload.objects.all(), _run, _slots, dispatch.DOWNLOAD)


def _run(download: ModelDownload) -> None:
    """Download one file, and store what became of it."""
    name = download.model.name
    logger.info("Model %s: download, attempt %d", name, download.attempt)
    facts: dict[str, Any] = {}
    error: DownloadError | FileBusyError | NotWantedError | OSError | None = None
    with DownloadProgress(download) as progress:
        try:
            facts = _download(download.model, progress)
        except (DownloadError, FileBusyError, NotWantedError, OSError) as exc:
            error = exc
        except Exception:
            # The download must come to an end, whatever is wrong with it.
            logger.exception("Model %s: the download failed unexpectedly", name)
            error = DownloadError("The worker failed unexpectedly; its log has the reason.")
    # What arrived since the last time is counted, too.
    if not download.store_progress(progress.downloaded_bytes, progress.total_bytes):
        logger.info("Model %s: its download is not this worker's any more", name)
        return
    match error:
        case None:
            if download.succeed(**facts):
                logger.info("Model %s: downloaded, %d bytes", name, progress.downloaded_bytes)
                progress.send_event(RegisteredModel.Status.AVAILABLE)
        case FileBusyError():
            why = "Another model with the same file is being downloaded."
            download.put_off(_BUSY_SECONDS, why, is_failure=False)
        case NotWantedError():  # this process stops
            download.put_off(0, "", is_failure=False)
        case DownloadError():
            _fail(download, error, progress)
        case OSError():
            reason = error.strerror or type(error).__name__
            message = f"MODELS_DIR cannot be written ({reason}): mend that, then {_GO_ON}."
            _fail(download, DownloadError(message), progress)


def _fail(download: ModelDownload, error: DownloadError, progress: DownloadProgress) -> None:
    num_failures = download.num_failures + 1
    if error.retryable and num_failures < _MAX_FAILURES:
        backoff = backoff_seconds(num_failures, 2, _MAX_WAIT_SECONDS)
        wait = max(backoff, error.retry_after)
        download.put_off(wait, f"{error} It is tried again in {wait:.0f} s.", is_failure=True)
        logger.warning("Model %s: %s Tried again in %.0f s", progress.name, error, wait)
        return
    why = f"{error} Tried {num_failures} times: {_GO_ON}." if error.retryable else str(error)
    if download.fail(why):
        logger.error("Model %s: not downloaded: %s", progress.name, why)
        progress.send_event(RegisteredModel.Status.ERROR)


def _download(model: RegisteredModel, progress: DownloadProgress) -> dict[str, Any]:
    """Have the file in place; returns fields of the model's row, as its registration finds them.

    Raises DownloadError, FileBusyError, NotWantedError, and OSError when it cannot be written.
    """
    target = target_path(model)
    remote = hub.look_up(model.config)
    progress.total_bytes = remote.size_bytes
    if not target.exists():
        with PartialFile(partial_path(model)) as partial:
            _complete(model, remote, partial, progress)
            partial.move_to(target)
            ModelFile.store(file_hashes.identity(target), partial.sha256)
    elif not _is_same(target, remote, progress):
        message = f"MODELS_DIR has another file {model.config['model_path']}: move it away first."
        raise DownloadError(message)
    try:
        return registration.file_facts(model.provider, model.config)
    except ValidationError as error:
        target.unlink()
        message = f"What the hub has there cannot be used: {in_words(error)}"
        raise DownloadError(message) from error


def _is_same(path: Path, remote: RemoteFile, progress: DownloadProgress) -> bool:
    """Whether a file that is there already is the one to download."""
    if path.stat().st_size != remote.size_bytes:
        return False
    digest = hashlib.sha256()
    if remote.sha256:
        with path.open("rb") as file:
            for chunk in read_chunks(file, progress.check):
                digest.update(chunk)
    progress.downloaded_bytes = remote.size_bytes
    return remote.sha256 in (None, digest.hexdigest())


def _complete(
    model: RegisteredModel, remote: RemoteFile, partial: PartialFile, progress: DownloadProgress
) -> None:
    """Download what is missing; a part that no later attempt continues is removed."""
    needed = remote.size_bytes - partial.size_on_disk + RESERVE_BYTES
    missing = needed - shutil.disk_usage(partial.path.parent).free
    if missing > 0:
        raise DownloadError(
            f"The disk of MODELS_DIR lacks {_megabytes(missing)} MB: the file takes "
            f"{_megabytes(remote.size_bytes)} MB, and {_megabytes(RESERVE_BYTES)} MB stay free. "
            f"Make room, then {_GO_ON}."
        )
    try:
        _fetch_and_check(remote, partial, progress)
        progress.check()
    except NotWantedError:
        if not RegisteredModel.objects.filter(pk=model.pk).exists():
            partial.discard()
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        partial.discard()
        raise DownloadError(
            "The disk of MODELS_DIR became full, so what had arrived was removed: make room, then "
            f"{_GO_ON}."
        ) from error


class _Speed:
    """How much has arrived since when, also where each connection brings a few bytes and ends."""

    def __init__(self, size: int) -> None:
        self._since, self._size = time.monotonic(), size

    def check(self, size: int) -> None:
        """Raises DownloadError when next to nothing has come for a while."""
        seconds = time.monotonic() - self._since
        is_slow = 0 <= size - self._size < _MIN_BYTES_PER_SECOND * seconds
        if seconds >= _MEASURED_SECONDS and is_slow:
            message = "The hub sends next to nothing: other downloads go first."
            raise DownloadError(message, retryable=True)
        if seconds >= _MEASURED_SECONDS or size < self._size:
            self._since, self._size = time.monotonic(), size


def _fetch_and_check(remote: RemoteFile, partial: PartialFile, progress: DownloadProgress) -> None:
    """Go on with the part that is there; wrong content is downloaded once more, from the start."""
    # Without a hash, nothing would tell whether the part fits the rest.
    if remote.sha256:
        partial.read_existing(progress.check)
    if remote.sha256 is None or partial.size > remote.size_bytes:
        partial.restart()
    progress.downloaded_bytes = partial.size
    speed = _Speed(partial.size)
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client:
        for is_last in (False, True):
            while partial.size < remote.size_bytes:
                _fetch(client, remote, partial, progress, speed)
            if partial.size == remote.size_bytes and remote.sha256 in (None, partial.sha256):
                return
            if not is_last:
                # The part from before may be of another version of the file.
                logger.warning("Model %s: wrong content, downloaded again", progress.name)
                partial.restart()
    partial.discard()
    raise DownloadError(
        "What arrived twice is not what the hub says the file is: delete the model, and "
        "register it again later, or with another HF_ENDPOINT."
    )


def _fetch(
    client: httpx.Client,
    remote: RemoteFile,
    partial: PartialFile,
    progress: DownloadProgress,
    speed: _Speed,
) -> None:
    """Append what one connection sends; raises DownloadError when that is nothing."""
    start = partial.size
    headers = remote.headers | ({"range": f"bytes={start}-"} if start else {})
    failure: httpx.RequestError = httpx.RemoteProtocolError("it sent nothing")
    try:
        with client.stream("GET", remote.url, headers=headers) as response:
            if not response.is_success:
                raise hub.status_error(response)
            if response.status_code != httpx.codes.PARTIAL_CONTENT and start:
                partial.restart()  # the server ignores ranges
            wanted_range = f"bytes {partial.size}-"
            if not response.headers.get("content-range", wanted_range).startswith(wanted_range):
                raise DownloadError("The hub sends another part of the file than was asked for.")
            # Chunks of a fixed size would lose the last one of a broken connection.
            for chunk in response.iter_raw():
                progress.check()
                partial.append(chunk)
                progress.downloaded_bytes = partial.size
                if partial.size > remote.size_bytes:
                    return
                speed.check(partial.size)
    except httpx.RequestError as error:
        failure = error
    if partial.size >= remote.size_bytes:
        return
    if partial.size <= start:
        raise hub.unreachable(failure) from failure
    speed.check(partial.size)
    logger.info(
        "Model %s: cut off at %d of %d bytes (%s), going on",
        *(progress.name, partial.size, remote.size_bytes, type(failure).__name__),
    )
    time.sleep(_RECONNECT_SECONDS)
    progress.check()


def _megabytes(num_bytes: int) -> str:
    return f"{-(-num_bytes // 1024**2):,}"
