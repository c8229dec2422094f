"""When tasks start and end, as far as it is known."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from inference import estimates, forecast
from inference.lifecycle import claim, finish
from inference.lifecycle.finish import Timings
from inference.models import GenerationTask, RegisteredModel
from inference.scheduling.durations import MAX_ALIKE
from inference.task_body import task_body
from monitoring.redis.client import client
from tests.conftest import Valkey, wait_until, wait_until_enqueued
from tests.inference.lifecycle.test_lifecycle import answer, claimed, fresh

NewTask = Callable[..., GenerationTask]
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_known(valkey: Valkey) -> Iterator[None]:
    forecast.unlearn()
    yield
    forecast.unlearn()


@pytest.fixture
def ended(new_task: NewTask) -> Callable[[float], None]:
    """Lets a task end that has taken so many seconds, of three tokens."""

    def end(seconds: float, model: str = "echo") -> None:
        ms = seconds * 1000
        timings = Timings(model_load_ms=None, ttft_ms=ms / 10, inference_ms=ms)
        assert finish.complete(claimed(new_task(model=model)), answer(), timings)

    return end


def simulated() -> None:
    wait_until(forecast.refresh)
    estimates.forget()


def test_nothing_is_known_before_a_task_of_the_model_has_ended(new_task: NewTask) -> None:
    simulated()
    body = task_body(new_task())
    names = ("estimated_start_at", "estimated_finish_at", "eta_seconds")
    assert [body[name] for name in names] == [None, None, None]


def test_pending_task_is_told_when_it_starts_and_ends(
    new_task: NewTask, ended: Callable[..., None]
) -> None:
    for seconds in (8, 10, 12):
        ended(seconds)
    task = new_task()
    simulated()
    estimate = estimates.of(task, 0)
    assert estimate is not None
    assert abs(estimate.start_at - timezone.now()) < timedelta(seconds=2)
    eta = estimate.eta_seconds
    assert 6 < eta["p10"] < eta["p50"] < eta["p90"] < 14
    assert estimate.finish_at - estimate.start_at > timedelta(seconds=6)


def test_those_that_wait_behind_others_start_later(
    new_task: NewTask, ended: Callable[..., None], settings: Settings
) -> None:
    settings.MAX_CLOUD_CONCURRENCY = 2
    for _ in range(3):
        ended(10)
    running = [claimed(new_task()).task for _ in range(2)]
    tasks = [new_task() for _ in range(6)]
    simulated()
    starts = [
        (estimate.start_at - timezone.now()).total_seconds()
        for position, task in enumerate(tasks)
        if (estimate := estimates.of(task, position))
    ]
    assert [round(start, -1) for start in starts] == [10, 10, 20, 20, 30, 30]
    following = estimates.of(new_task())
    assert following is not None
    assert round((following.start_at - timezone.now()).total_seconds(), -1) == 40
    of_running = estimates.of(fresh(running[0]))
    assert of_running is not None
    assert 8 < of_running.eta_seconds["p50"] <= 10


def test_what_is_told_goes_by_how_far_off_it_was_before(
    new_task: NewTask, ended: Callable[..., None]
) -> None:
    for _ in range(MAX_ALIKE):
        ended(10)
    simulated()
    told = estimates.of(new_task())
    assert told is not None
    assert 9 < told.eta_seconds["p50"] < 11
    for _ in range(estimates.MIN_ERRORS):
        ended(10)  # as its timings say, but it is there at once
    simulated()
    told = estimates.of(new_task())
    assert told is not None
    assert told.eta_seconds["p90"] < 5
    assert told.start_at <= told.finish_at


def test_running_longer_than_any_before_is_expected_to_end_soon(
    new_task: NewTask, ended: Callable[..., None]
) -> None:
    ended(1)
    lease = claimed(new_task())
    began = timezone.now() - timedelta(seconds=100)
    GenerationTask.objects.filter(pk=lease.task.pk).update(started_at=began)
    simulated()
    estimate = estimates.of(fresh(lease.task))
    assert estimate is not None
    assert 5 < estimate.eta_seconds["p50"] < 20


def test_ended_task_has_no_estimate(new_task: NewTask, ended: Callable[..., None]) -> None:
    ended(1)
    task = new_task()
    simulated()
    GenerationTask.objects.filter(pk=task.pk).update(status="completed")
    assert estimates.of(fresh(task)) is None


def test_loading_the_model_counts(new_task: NewTask, settings: Settings) -> None:
    RegisteredModel.objects.create(name="local", provider="local")
    task = new_task(model="local")
    lease = claimed(task)
    timings = Timings(model_load_ms=30_000, ttft_ms=30_500, inference_ms=1000)
    assert finish.complete(lease, answer(), timings)
    simulated()
    estimate = estimates.of(new_task(model="local"))
    assert estimate is not None
    assert 30 < estimate.eta_seconds["p50"] < 32


def test_full_queue_says_when_it_has_gone_on(
    api: APIClient, new_task: NewTask, ended: Callable[..., None], settings: Settings
) -> None:
    settings.MAX_CLOUD_CONCURRENCY = 1
    ended(40)
    claimed(new_task())
    new_task()
    simulated()
    assert 30 < (estimates.wait_seconds() or 0) <= 40


def test_without_redis_nothing_is_known(
    new_task: NewTask, ended: Callable[..., None], valkey: Valkey
) -> None:
    ended(1)
    task = new_task()
    simulated()
    wait_until_enqueued()  # else the outbox would mark the row, in a database that the test holds
    valkey.stop()
    try:
        estimates.forget()
        assert estimates.of(task) is None
        forecast.refresh()
    finally:
        valkey.start()


def test_thousands_that_wait_cost_a_reader_nothing(
    new_task: NewTask, ended: Callable[..., None], django_assert_num_queries: Any
) -> None:
    ended(1)
    task = new_task()
    simulated()
    assert client().exists("estimates")
    with django_assert_num_queries(0):
        for position in range(100):
            assert estimates.of(task, position)


def test_owners_share_in_the_estimate_as_they_do_in_the_queue(
    new_task: NewTask, ended: Callable[..., None], settings: Settings
) -> None:
    settings.MAX_CLOUD_CONCURRENCY = 1
    ended(10)
    for _ in range(9):
        new_task(owner="many")
    other = new_task(owner="other")
    simulated()
    position = task_body(other)["queue_position"]
    estimate = estimates.of(other, position)
    assert estimate is not None
    assert (estimate.start_at - timezone.now()).total_seconds() < 25
    assert claim.claim_most_urgent("api")
