"""Bringing the bytes: as many connections as it takes, each going on where the last one ended."""

import hashlib
import logging
from pathlib import Path

import httpx

from inference.registry.downloads import hub
from inference.registry.downloads.errors import DownloadError, WrongContentError
from inference.registry.downloads.hub import RemoteFile
from inference.registry.downloads.partial_file import PartialFile, read_chunks
from inference.registry.downloads.progress import Progress

logger = logging.getLogger(__name__)

_TIMEOUT = httpx.Timeout(10.0, read=30.0)
_PAUSE_SECONDS = 0.5


def bring(remote: RemoteFile, partial: PartialFile, progress: Progress) -> None:
    """Have all of the file, as the hub says it is; a wrong one is brought once more.

    Raises DownloadError, NotWantedError, and OSError when it cannot be written.
    """
    _take_over(remote, partial, progress)
    try:
        _fetch_and_check(remote, partial, progress)
    except WrongContentError:
        # What was there already may be of another version of the file.
        logger.warning("Model %s: wrong content, downloading it from the start", progress.name)
        partial.restart()
        _fetch_again(remote, partial, progress)


def is_same(path: Path, remote: RemoteFile, progress: Progress) -> bool:
    """Whether a file that is there already is the one that would be brought."""
    progress.total_bytes = remote.size_bytes
    if path.stat().st_size != remote.size_bytes:
        return False
    found = _sha256(path, progress) if remote.sha256 else None
    progress.downloaded_bytes = remote.size_bytes
    return found == remote.sha256


def _sha256(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in read_chunks(file, progress.check):
            digest.update(chunk)
    return digest.hexdigest()


def _take_over(remote: RemoteFile, partial: PartialFile, progress: Progress) -> None:
    """What arrived earlier counts only if it can be checked in the end."""
    progress.total_bytes = remote.size_bytes
    if remote.sha256 is None:
        partial.restart()
    else:
        partial.read_on(progress.check)
    if partial.size > remote.size_bytes:
        partial.restart()
    progress.downloaded_bytes = partial.size


def _fetch_again(remote: RemoteFile, partial: PartialFile, progress: Progress) -> None:
    try:
        _fetch_and_check(remote, partial, progress)
    except WrongContentError:
        partial.discard()
        message = (
            "What arrived twice is not what the hub says the file is: delete the model, and "
            "register it again later, or with another HF_ENDPOINT."
        )
        raise DownloadError(message) from None


def _fetch_and_check(remote: RemoteFile, partial: PartialFile, progress: Progress) -> None:
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client:
        while partial.size < remote.size_bytes:
            _fetch(client, remote, partial, progress)
    if partial.size != remote.size_bytes or remote.sha256 not in (None, partial.sha256):
        raise WrongContentError


def _fetch(
    client: httpx.Client, remote: RemoteFile, partial: PartialFile, progress: Progress
) -> None:
    """One connection; raises DownloadError when it brought nothing."""
    had = partial.size
    failure: httpx.RequestError = httpx.RemoteProtocolError("it sent nothing")
    try:
        _stream(client, remote, partial, progress)
    except httpx.RequestError as error:
        failure = error
    if partial.size >= remote.size_bytes:
        return
    if partial.size <= had:
        raise hub.unreachable(failure) from failure
    logger.info(
        "Model %s: cut off at %d of %d bytes (%s), going on",
        *(progress.name, partial.size, remote.size_bytes, type(failure).__name__),
    )
    progress.wait(_PAUSE_SECONDS)


def _stream(
    client: httpx.Client, remote: RemoteFile, partial: PartialFile, progress: Progress
) -> None:
    """Append what one answer brings."""
    headers = {**remote.headers}
    if partial.size:
        headers["range"] = f"bytes={partial.size}-"
    with client.stream("GET", remote.url, headers=headers) as response:
        if not response.is_success:
            raise hub.answered(response.status_code, response.headers.get("retry-after"))
        if response.status_code != httpx.codes.PARTIAL_CONTENT and partial.size:
            partial.restart()  # it sends all of it, whatever it was asked for
        _check_start(response, partial.size)
        # As it arrives: chunks of a given size would be lost with a connection that ends in one.
        for chunk in response.iter_raw():
            progress.check()
            partial.append(chunk)
            progress.downloaded_bytes = partial.size
            if partial.size > remote.size_bytes:
                raise WrongContentError


def _check_start(response: httpx.Response, start: int) -> None:
    """Another part than the one that was asked for is of no use."""
    content_range = response.headers.get("content-range", f"bytes {start}-")
    if not content_range.startswith(f"bytes {start}-"):
        raise DownloadError("The hub sends another part of the file than it was asked for.")
