"""Bringing what is due, and what becomes of it: in the api worker alone."""

import errno
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

from rest_framework.exceptions import ValidationError

from inference import dispatch
from inference.models import ModelDownload, RegisteredModel
from inference.registry import registration
from inference.registry.downloads import hub, transfer
from inference.registry.downloads.errors import DownloadError, FileBusyError, NotWantedError
from inference.registry.downloads.hub import RemoteFile
from inference.registry.downloads.partial_file import PartialFile
from inference.registry.downloads.paths import partial_path, target_path
from inference.registry.downloads.progress import Progress
from inference.registry.downloads.requests import stopping
from monitoring.api.errors import in_words

logger = logging.getLogger(__name__)

# Stays free on the disk: the database and the logs may be there, too.
RESERVE_BYTES = 512 * 1024 * 1024
# With their waits about eight minutes in which nothing arrives.
_MAX_FAILURES = 12
_MAX_WAIT_SECONDS = 60.0
_BUSY_SECONDS = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_GO_ON = "load the model to go on with its download"

_slots = threading.BoundedSemaphore(ModelDownload.MAX_AT_ONCE)


def download_due() -> None:
    """Bring the file that has waited longest, if a slot is free, and enqueue the next one."""
    if not stopping.is_set():
        dispatch.run_due(ModelDownload.objects.all(), _run, _slots, dispatch.DOWNLOAD)


def _run(download: ModelDownload) -> None:
    logger.info("Model %s: download, attempt %d", download.model.name, download.attempt)
    with Progress(download) as progress:
        outcome = _outcome(download.model, progress)
    # What arrived since the last time is counted, too.
    if not download.store_progress(progress.downloaded_bytes, progress.total_bytes):
        logger.info("Model %s: its download is not this worker's any more", download.model.name)
        return
    if isinstance(outcome, DownloadError):
        _fail(download, outcome, progress)
    elif isinstance(outcome, FileBusyError):
        why = "Another model with the same file is being downloaded."
        download.put_off(_BUSY_SECONDS, why, is_failure=False)
    elif isinstance(outcome, NotWantedError):  # this process stops
        download.put_off(0, "", is_failure=False)
    else:
        _succeed(download, outcome, progress)


def _outcome(
    model: RegisteredModel, progress: Progress
) -> dict[str, Any] | DownloadError | FileBusyError | NotWantedError:
    """Bring the file; returns what is known of it then, or why there is none."""
    try:
        return _bring(model, progress)
    except (DownloadError, FileBusyError, NotWantedError) as error:
        return error
    except OSError as error:
        return _of_disk(error)
    except Exception:
        # The download must come to an end, whatever is wrong with it.
        logger.exception("Model %s: the download failed unexpectedly", model.name)
        return DownloadError("The worker failed unexpectedly; its log has the reason.")


def _bring(model: RegisteredModel, progress: Progress) -> dict[str, Any]:
    target = target_path(model)
    remote = hub.look_up(model.config)
    if not target.exists():
        with PartialFile(partial_path(model)) as partial:
            _fill(remote, partial, progress)
            partial.move_to(target)
    elif not transfer.is_same(target, remote, progress):
        message = f"MODELS_DIR has another file {model.config['model_path']}: move it away first."
        raise DownloadError(message)
    return _facts(model, target)


def _fill(remote: RemoteFile, partial: PartialFile, progress: Progress) -> None:
    """What will not be gone on with does not stay on the disk."""
    _check_room(partial, remote)
    try:
        transfer.bring(remote, partial, progress)
        progress.check()
    except NotWantedError:
        if progress.is_deleted():
            partial.discard()
        raise
    except OSError as error:
        if error.errno in _FULL:
            partial.discard()
        raise


def _check_room(partial: PartialFile, remote: RemoteFile) -> None:
    needed = remote.size_bytes - partial.size_on_disk + RESERVE_BYTES
    missing = needed - shutil.disk_usage(partial.path.parent).free
    if missing > 0:
        raise DownloadError(
            f"The disk of MODELS_DIR lacks {_megabytes(missing)} MB: the file takes "
            f"{_megabytes(remote.size_bytes)} MB, and {_megabytes(RESERVE_BYTES)} MB stay free. "
            f"Make room, then {_GO_ON}."
        )


def _facts(model: RegisteredModel, target: Path) -> dict[str, Any]:
    """Fields of the model's row, as a registration of the file finds them."""
    try:
        return registration.file_facts(model.provider, model.config)
    except ValidationError as error:
        target.unlink()
        message = f"What the hub has there cannot be used: {in_words(error)}"
        raise DownloadError(message) from error


def _of_disk(error: OSError) -> DownloadError:
    if error.errno in _FULL:
        return DownloadError(
            "The disk of MODELS_DIR became full, so what had arrived was removed: make room, then "
            f"{_GO_ON}."
        )
    reason = error.strerror or type(error).__name__
    return DownloadError(f"MODELS_DIR cannot be written ({reason}): mend that, then {_GO_ON}.")


def _succeed(download: ModelDownload, facts: dict[str, Any], progress: Progress) -> None:
    if download.succeed(**facts):
        logger.info("Model %s: downloaded, %d bytes", progress.name, progress.downloaded_bytes)
        progress.tell(RegisteredModel.Status.AVAILABLE)


def _fail(download: ModelDownload, error: DownloadError, progress: Progress) -> None:
    num_failures = download.num_failures + 1
    if error.retryable and num_failures < _MAX_FAILURES:
        wait = max(min(2.0**num_failures, _MAX_WAIT_SECONDS), error.retry_after or 0)
        download.put_off(wait, f"{error} It is tried again in {wait:.0f} s.", is_failure=True)
        logger.warning("Model %s: %s Tried again in %.0f s", progress.name, error, wait)
        return
    why = f"{error} Tried {num_failures} times: {_GO_ON}." if error.retryable else str(error)
    if download.fail(why):
        logger.error("Model %s: not downloaded: %s", progress.name, why)
        progress.tell(RegisteredModel.Status.ERROR)


def _megabytes(num_bytes: int) -> str:
    return f"{-(-num_bytes // 1024**2):,}"
