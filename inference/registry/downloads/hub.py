"""Metadata of files on the hub, and the meaning of its errors. Imported by the worker alone.

The hub's library knows addresses, headers and the user's token. It does not download the file: its
`http_get` writes 10 MB at a time, so what a broken connection has sent of the last 10 MB is lost
and a cancel waits for them, and it sleeps through a Retry-After of any length.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import httpx
from django.conf import settings
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._headers import build_hf_headers

from inference.retries import retry_after_seconds
from monitoring.logs.redaction import redact

_LOOK_UP_SECONDS = 10.0
_MAX_REASON_CHARS = 200
_MAX_RETRY_AFTER_SECONDS = 300.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RETRYABLE_STATUSES = {408, 425, 429}


class DownloadError(Exception):
    """A failed download; the message says what to do next, without tokens or signed addresses.

    `retryable`: it may go better later, in `retry_after` seconds where the hub has said so.
    """

    def __init__(self, message: str, *, retryable: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at one commit. `headers` hold the token, and are not to be shown.

    `sha256` is None for files that are not in LFS: those have no hash of their content alone.
    """

    url: str
    size_bytes: int
    sha256: str | None
    headers: dict[str, str] = field(repr=False)


def look_up(config: dict[str, Any]) -> RemoteFile:
    """Size, hash and commit of a model's file; raises DownloadError."""
    repo, filename = config["huggingface_repo"], config["filename"]
    try:
        url = hf_hub_url(
            repo, filename, revision=config.get("revision"), endpoint=settings.HF_ENDPOINT
        )
        found = get_hf_file_metadata(url, timeout=_LOOK_UP_SECONDS, endpoint=settings.HF_ENDPOINT)
    except HfHubHTTPError as error:
        raise _refusal(config, error) from error
    except OfflineModeIsEnabled as error:
        message = "The hub's library is told to stay offline: unset HF_HUB_OFFLINE for the worker."
        raise DownloadError(message) from error
    except (HFValidationError, httpx.InvalidURL) as error:
        raise DownloadError(f"{repo} names no repository: {_reason(error)}") from error
    except httpx.RequestError as error:
        raise unreachable(error) from error
    if found.size is None:
        raise DownloadError(f"{settings.HF_ENDPOINT} does not say how large {filename} is.")
    # Of one commit: all parts that arrive are of the same file.
    if found.commit_hash:
        url = hf_hub_url(repo, filename, revision=found.commit_hash, endpoint=settings.HF_ENDPOINT)
    sha256 = found.etag if _SHA256.fullmatch(found.etag or "") else None
    known = config.get("sha256")
    if known and sha256 and sha256 != known:
        raise DownloadError(
            f"{repo} has another {filename} by now than the preset says: look at what it is, then "
            "give its sha256 to the preset, and register the model anew."
        )
    headers = {**build_hf_headers(), "accept-encoding": "identity"}
    return RemoteFile(url, found.size, known or sha256, headers)


def _refusal(config: dict[str, Any], error: HfHubHTTPError) -> DownloadError:
    """The error of a look-up, the most specific class first."""
    repo = config["huggingface_repo"]
    match error:
        case GatedRepoError():
            message = (
                f"{repo} is gated: accept its conditions on its page, then set HF_TOKEN in the "
                "worker's environment to a token of that account."
            )
        case RevisionNotFoundError():
            message = f"{repo} has no revision {config.get('revision')}: check its name."
        case RemoteEntryNotFoundError():
            message = f"{repo} has no file {config['filename']}: check its name."
        case RepositoryNotFoundError():
            message = (
                f"{repo} does not exist, or is private: check its name, or set HF_TOKEN in the "
                "worker's environment to a token that may read it."
            )
        case _:
            return status_error(error.response)
    return DownloadError(message)


def status_error(response: httpx.Response) -> DownloadError:
    """The error for a status other than success."""
    status = response.status_code
    if status in (401, 403):
        return DownloadError(
            f"The hub refuses the file ({status}): set HF_TOKEN in the worker's environment to a "
            "token that may read it, and accept its conditions on the model's page."
        )
    if status in _RETRYABLE_STATUSES or status >= 500:
        retry_after = retry_after_seconds(response.headers) or 0.0
        return DownloadError(
            f"The hub answers {status}.",
            retryable=True,
            retry_after=min(retry_after, _MAX_RETRY_AFTER_SECONDS),
        )
    return DownloadError(f"The hub answers {status} instead of the file: check HF_ENDPOINT.")


def unreachable(error: httpx.RequestError) -> DownloadError:
    """The error for a network that failed or was silent."""
    return DownloadError(
        f"The hub at {redact(settings.HF_ENDPOINT)} cannot be reached: {_reason(error)}.",
        retryable=True,
    )


def _reason(error: Exception) -> str:
    return redact(str(error) or type(error).__name__)[:_MAX_REASON_CHARS].rstrip(".")
