"""When to try again: the wait that a Retry-After asks for, and the one without it."""

import random
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

# What no caller waits for anyway.
_MAX_SECONDS = 30 * 86_400.0
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")


def retry_after_seconds(asked: Mapping[str, Any] | str | None) -> float | None:
    """Seconds from now, by a Retry-After or by the headers of an answer; None without one.

    Retry-After is a number of seconds or an HTTP date; `retry-after-ms` is OpenAI's.
    """
    if isinstance(asked, Mapping):
        milliseconds = _number(asked.get("retry-after-ms"))
        if milliseconds is not None:
            return min(milliseconds / 1000, _MAX_SECONDS)
        asked = asked.get("retry-after")
    seconds = _number(asked)
    if seconds is None and asked:
        try:
            moment = parsedate_to_datetime(asked)
            aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            seconds = max(0.0, aware.timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    return None if seconds is None else min(seconds, _MAX_SECONDS)


def backoff_seconds(num_failures: int, first: float, longest: float) -> float:
    """`first` after one failure, then twice as long each time, up to `longest`.

    By chance up to a quarter less, so that not all come back at once.
    """
    doubled = first * 2.0 ** min(num_failures - 1, 32)
    return min(doubled, longest) * random.uniform(0.75, 1)  # noqa: S311 - it keeps no secret


def _number(text: Any) -> float | None:
    return float(text) if isinstance(text, str) and _NUMBER.fullmatch(text.strip()) else None
