"""When beat sends its messages."""

import time

import pytest

import celery_app


def test_clock_of_beat_goes_on_when_that_of_the_host_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule = celery_app.every(5.0)
    last_run_at, hour_ago, now = schedule.now(), time.time() - 3600, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: hour_ago)
    monkeypatch.setattr(time, "monotonic", lambda: now + 4)
    assert not schedule.is_due(last_run_at).is_due
    monkeypatch.setattr(time, "monotonic", lambda: now + 6)
    assert schedule.is_due(last_run_at).is_due


def test_all_that_beat_sends_goes_by_it() -> None:
    for entry in celery_app.app.conf.beat_schedule.values():
        assert entry["schedule"].nowfun is celery_app.steady_now
