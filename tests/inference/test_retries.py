"""Waits before another try: what was asked for, and what grows by itself."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from inference.retries import backoff_seconds, retry_after_seconds


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("7", 7),
        ("0.3", 0.3),
        (" 12 ", 12),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00", 0),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "7", "retry-after-ms": "soon"}, 7),
        (httpx.Headers({"Retry-After": "7"}), 7),
    ],
)
def test_number_and_date_are_read(asked: dict[str, str] | str, seconds: float) -> None:
    assert retry_after_seconds(asked) == seconds


def test_date_is_a_time_from_now() -> None:
    moment = datetime.now(UTC) + timedelta(hours=1)
    for naive in (True, False):
        text = format_datetime(moment, usegmt=True)
        seconds = retry_after_seconds(text.removesuffix(" GMT") if naive else text)
        assert seconds is not None
        assert 3500 < seconds <= 3600


@pytest.mark.parametrize(
    "asked",
    [
        *(None, "", "soon", "-5", "nan", "inf", "1_0", "١٢٠", {}, {"retry-after": None}),
        *("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", "Wed, 99 Oct 2015 07:28:00 GMT"),
    ],
)
def test_nonsense_asks_for_nothing(asked: dict[str, str] | str | None) -> None:
    assert retry_after_seconds(asked) is None


@pytest.mark.parametrize(
    "asked",
    [
        *("9" * 30, "9" * 1000, {"retry-after-ms": "9" * 400}, "1" + "0" * 30 + ".5"),
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ],
)
def test_it_is_bounded(asked: dict[str, str] | str) -> None:
    assert retry_after_seconds(asked) == 30 * 86_400


def test_backoff_doubles_up_to_a_limit() -> None:
    for num_failures, longest in ((1, 5), (2, 10), (3, 20), (4, 30), (1_000_000, 30)):
        waits = [backoff_seconds(num_failures, 5, 30) for _ in range(100)]
        assert all(longest * 0.75 <= wait <= longest for wait in waits)
        assert max(waits) > min(waits)
