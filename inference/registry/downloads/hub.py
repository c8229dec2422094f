"""What the hub says of a file, and what its refusals mean. Imported by the worker alone.

The hub's library knows addresses, headers and the user's token. It does not bring the file: since
1.33 it begins a broken download from the start, see `_download_to_tmp_and_move` there.
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

from inference.registry.downloads.errors import DownloadError
from monitoring.logs.redaction import redact

_LOOK_UP_SECONDS = 10.0
_MAX_REASON = 200
_MAX_RETRY_AFTER = 300.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LATER = {408, 425, 429}


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
        raise refusal(config, error) from error
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
    _check_expected(config, found.size, sha256)
    headers = {**build_hf_headers(), "accept-encoding": "identity"}
    return RemoteFile(url, found.size, sha256 or config.get("sha256"), headers)


def _check_expected(config: dict[str, Any], size_bytes: int, sha256: str | None) -> None:
    """The preset may know the file: then no other one is brought."""
    known = (config.get("size_bytes"), config.get("sha256"))
    for expected, found in zip(known, (size_bytes, sha256), strict=True):
        if expected and found and expected != found:
            message = (
                f"{config['filename']} of {config['huggingface_repo']} is not the file that the "
                "preset describes, it has changed there: set another revision in the preset, or "
                "its new size and hash."
            )
            raise DownloadError(message)


def refusal(config: dict[str, Any], error: HfHubHTTPError) -> DownloadError:
    """What an answer of the hub that is no file means, from the most special to any other."""
    repo, status = config["huggingface_repo"], error.response.status_code
    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"{repo} is gated: accept its conditions on its page, then set HF_TOKEN in the "
            "worker's environment to a token of that account."
        )
    if isinstance(error, RevisionNotFoundError):
        return DownloadError(f"{repo} has no revision {config.get('revision')}: check its name.")
    if isinstance(error, RemoteEntryNotFoundError):
        return DownloadError(f"{repo} has no file {config['filename']}: check its name.")
    if isinstance(error, RepositoryNotFoundError):
        return DownloadError(
            f"{repo} does not exist, or is private: check its name, or set HF_TOKEN in the "
            "worker's environment to a token that may read it."
        )
    return answered(status, error.response.headers.get("retry-after"))


def answered(status: int, retry_after: str | None) -> DownloadError:
    """What a status that is no success means."""
    if status in (401, 403):
        return DownloadError(
            f"The hub refuses the file ({status}): set HF_TOKEN in the worker's environment to a "
            "token that may read it, and accept its conditions on the model's page."
        )
    if status in _LATER or status >= 500:
        wait = float(retry_after) if retry_after and retry_after.isdecimal() else None
        return DownloadError(
            f"The hub answers {status}.",
            retryable=True,
            retry_after=min(wait, _MAX_RETRY_AFTER) if wait is not None else None,
        )
    return DownloadError(f"The hub answers {status} instead of the file: check HF_ENDPOINT.")


def unreachable(error: httpx.RequestError) -> DownloadError:
    """The network failed, or was silent."""
    return DownloadError(
        f"The hub at {redact(settings.HF_ENDPOINT)} cannot be reached: {_reason(error)}.",
        retryable=True,
    )


def _reason(error: Exception) -> str:
    return redact(str(error) or type(error).__name__)[:_MAX_REASON].rstrip(".")
