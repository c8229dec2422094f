"""GET /monitor/stats: every end of a task counts once, and percentiles are right."""

import math
import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import finish, sweep
from inference.lifecycle.finish import Timings
from inference.models import GenerationTask
from inference.tasks import purge
from monitoring.metrics import stats
from monitoring.models import EndedTask, OwnerUse
from tests.conftest import Valkey, wait_until_enqueued
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed, lose

NewTask = Callable[..., GenerationTask]
PATH = "/api/v1/monitor/stats"
TODAY = stats.today()


def noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


def ended(day: date, **fields: Any) -> EndedTask:
    values = {"model_name": "echo", "outcome": "completed", "ended_at": noon(day)}
    tokens = {"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 2}
    return EndedTask(**(values | tokens | fields))


def days_ago(days: int) -> date:
    return TODAY - timedelta(days=days)


def outcomes() -> list[str]:
    return list(EndedTask.objects.order_by("pk").values_list("outcome", flat=True))


# Every end counts


def test_completed_task_is_counted_with_its_figures(new_task: NewTask) -> None:
    task = new_task()
    timings = Timings(model_load_ms=100.0, ttft_ms=120.0, inference_ms=50.0)
    before = timezone.now()
    lease = claimed(task)
    finish.complete(lease, answer(), timings)
    row = EndedTask.objects.get()
    assert (row.model_name, row.outcome) == ("echo", "completed")
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (3, 2, 0)
    assert (row.ttft_ms, row.inference_ms) == (120.0, 50.0)
    wait_ms = lease.task.queue_wait_ms
    assert wait_ms is not None
    assert row.queue_wait_ms == wait_ms
    assert row.total_ms == pytest.approx(wait_ms + 150.0)
    assert before - timedelta(seconds=1) < row.ended_at <= timezone.now()


def test_use_of_an_owner_adds_up_by_day(new_task: NewTask) -> None:
    for owner in ("ann", "ann", "bob"):
        finish.complete(claimed(new_task(owner=owner)), answer(), TIMINGS)
    finish.cancel(new_task(owner="ann"))
    day_before = OwnerUse.objects.get(owner="bob")
    day_before.pk, day_before.day = None, timezone.now().date() - timedelta(days=1)
    day_before.save()
    assert OwnerUse.objects.today("ann") == {
        "num_tasks": 3,
        "prompt_tokens": 6,
        "completion_tokens": 4,
        "cost_usd": 0,
    }
    assert OwnerUse.objects.today("bob")["num_tasks"] == 1
    assert OwnerUse.objects.today("nobody")["num_tasks"] == 0


def test_use_is_kept_for_thirteen_months(new_task: NewTask) -> None:
    finish.cancel(new_task())
    use = OwnerUse.objects.get()
    for days in (396, 397):
        use.pk, use.day = None, timezone.now().date() - timedelta(days=days)
        use.save()
    purge()
    assert OwnerUse.objects.count() == 2


def test_failure_without_text_is_counted_without_tokens(new_task: NewTask) -> None:
    failure = InferenceError("Do this next.", ErrorCode.PROVIDER_ERROR)
    finish.fail(claimed(new_task()), failure, None, Timings(inference_ms=4.0))
    row = EndedTask.objects.get()
    assert (row.outcome, row.completion_tokens, row.ttft_ms) == ("failed", 0, None)


def test_each_way_to_end_counts_once(new_task: NewTask) -> None:
    cancelled, late, running, asked = (new_task(deadline_seconds=60) for _ in range(4))
    assert finish.cancel(cancelled)
    assert not finish.cancel(cancelled)
    assert outcomes() == ["cancelled"]

    lease = claimed(running)
    finish.cancel(running)
    finish.finish_cancelled(lease, answer("par", "cancelled"), TIMINGS)
    assert not finish.complete(lease, answer(), TIMINGS)
    assert outcomes() == ["cancelled"] * 2

    claimed(asked)
    finish.cancel(asked)
    lose(asked)
    assert outcomes() == ["cancelled"] * 3

    past = timezone.now() - timedelta(seconds=1)
    GenerationTask.objects.filter(pk=late.pk).update(deadline_at=past)
    sweep.sweep()
    sweep.sweep()
    assert outcomes() == ["cancelled"] * 3 + ["failed"]


def test_lost_worker_counts_when_the_task_has_failed(new_task: NewTask) -> None:
    task = new_task()
    for _ in range(settings.MAX_ATTEMPTS):
        assert outcomes() == []
        claimed(task)
        lose(task)
    row = EndedTask.objects.get()
    assert (row.outcome, row.ttft_ms, row.total_ms) == ("failed", None, None)
    assert row.queue_wait_ms is not None


def test_lost_lease_does_not_count(new_task: NewTask) -> None:
    lease = claimed(new_task())
    lose(lease.task)
    assert not finish.complete(lease, answer(), TIMINGS)
    assert outcomes() == []


def test_figures_outlive_the_task(new_task: NewTask) -> None:
    task = new_task()
    finish.complete(claimed(task), answer(), TIMINGS)
    assert finish.delete(task)
    assert outcomes() == ["completed"]


def test_purge_keeps_seven_days(db: None, valkey: Valkey) -> None:
    now = timezone.now()
    moments = [now - timedelta(days=7, minutes=1), now - timedelta(days=6, hours=23), now]
    EndedTask.objects.bulk_create(ended(TODAY, ended_at=moment) for moment in moments)
    purge()
    assert EndedTask.objects.count() == 2
    assert not EndedTask.objects.filter(ended_at__lt=moments[1] - timedelta(minutes=1)).exists()


def test_purge_goes_in_steps(db: None) -> None:
    EndedTask.objects.bulk_create(ended(days_ago(9)) for _ in range(5))
    assert [EndedTask.objects.purge(limit=2) for _ in range(4)] == [2, 2, 1, 0]


# What is told


def nearest_rank(values: list[float], percent: int) -> float:
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def expected(values: list[float]) -> dict[str, Any]:
    if not values:
        return {"mean": None, "p50": None, "p95": None}
    spread = {"mean": sum(values) / len(values)}
    spread |= {f"p{percent}": nearest_rank(values, percent) for percent in (50, 95)}
    return {name: pytest.approx(value, abs=0.006) for name, value in spread.items()}


def expected_summary(tasks: list[EndedTask]) -> dict[str, Any]:
    by_outcome = {
        outcome: sum(task.outcome == outcome for task in tasks)
        for outcome in ("completed", "failed", "cancelled")
    }
    speeds = [
        task.completion_tokens / task.inference_ms * 1000
        for task in tasks
        if task.inference_ms and task.completion_tokens
    ]
    times = {
        name: expected([value for task in tasks if (value := getattr(task, name)) is not None])
        for name in ("queue_wait_ms", "ttft_ms", "total_ms")
    }
    return {
        "tasks": {"total": len(tasks)} | by_outcome,
        "tokens": {
            kind: sum(getattr(task, f"{kind}_tokens") for task in tasks)
            for kind in ("prompt", "completion", "cached")
        },
        "tokens_per_second": expected(speeds),
        **times,
    }


def random_tasks(rng: random.Random, number: int) -> list[EndedTask]:
    """Of three models over eight days; some lack times, many have equal ones."""

    def maybe(value: float) -> float | None:
        return None if rng.random() < 0.2 else round(value, rng.choice([0, 1, 12]))

    return [
        ended(
            days_ago(rng.randrange(8)),
            model_name=rng.choice(["a", "b", "never timed"]),
            outcome=rng.choice(["completed", "completed", "failed", "cancelled"]),
            prompt_tokens=rng.randrange(500),
            completion_tokens=rng.randrange(3),
            cached_tokens=rng.randrange(100),
            queue_wait_ms=maybe(rng.expovariate(0.01)),
            ttft_ms=maybe(rng.expovariate(0.1)),
            inference_ms=rng.choice([None, 0.0, rng.uniform(0.01, 1e5)]),
            total_ms=maybe(rng.lognormvariate(5, 3)),
        )
        for _ in range(number)
    ]


@pytest.mark.parametrize(("seed", "number"), [(1, 1), (2, 2), (3, 19), (4, 20), (5, 21), (6, 700)])
def test_figures_equal_those_worked_out_one_by_one(api: APIClient, seed: int, number: int) -> None:
    tasks = random_tasks(random.Random(seed), number)  # noqa: S311 (no secret)
    for task in tasks:
        if task.model_name == "never timed":
            task.queue_wait_ms = task.ttft_ms = task.inference_ms = task.total_ms = None
    EndedTask.objects.bulk_create(tasks)
    recent = [task for task in tasks if task.ended_at > noon(days_ago(7))]

    body = api.get(f"{PATH}?days=7").json()

    assert body["start"] == f"{days_ago(6)}T00:00:00Z"
    assert body["end"] == f"{TODAY + timedelta(days=1)}T00:00:00Z"
    whole = {name: body[name] for name in expected_summary([])}
    assert whole == expected_summary(recent)
    models = {task.model_name for task in recent}
    assert body["models"] == {
        model: expected_summary([task for task in recent if task.model_name == model])
        for model in models
    }
    assert body["days"] == [
        {"date": str(day)}
        | expected_summary([task for task in recent if task.ended_at.date() == day])
        for day in (days_ago(age) for age in range(6, -1, -1))
    ]


@pytest.mark.parametrize("path", [PATH, f"{PATH}/"])
def test_today_is_told_by_default(api: APIClient, path: str) -> None:
    EndedTask.objects.bulk_create([ended(TODAY), ended(days_ago(1)), ended(days_ago(2))])
    body = api.get(path).json()
    assert body["tasks"]["total"] == 1
    assert body["start"] == f"{TODAY}T00:00:00Z"
    assert [(day["date"], day["tasks"]["total"]) for day in body["days"]] == [(str(TODAY), 1)]


def test_day_lasts_from_midnight_to_midnight(api: APIClient) -> None:
    yesterday, midnight = days_ago(1), noon(TODAY) - timedelta(hours=12)
    for moment in (
        midnight - timedelta(days=1, milliseconds=1),
        midnight - timedelta(days=1),
        midnight - timedelta(milliseconds=1),
        midnight,
    ):
        ended(TODAY, ended_at=moment).save()
    body = api.get(f"{PATH}?date={yesterday}").json()
    assert body["tasks"]["total"] == 2
    assert (body["start"], body["end"]) == (f"{yesterday}T00:00:00Z", f"{TODAY}T00:00:00Z")


def test_days_without_tasks_are_told_too(api: APIClient) -> None:
    body = api.get(f"{PATH}?days=2").json()
    assert body["models"] == {}
    assert [day["date"] for day in body["days"]] == [str(days_ago(1)), str(TODAY)]
    assert {name: body[name] for name in expected_summary([])} == expected_summary([])


def test_task_that_ends_is_told(api: APIClient, new_task: NewTask) -> None:
    finish.complete(claimed(new_task()), answer(), TIMINGS)
    body = api.get(PATH).json()
    assert body["tasks"] == {"total": 1, "completed": 1, "failed": 0, "cancelled": 0}
    assert body["tokens"] == {"prompt": 3, "completion": 2, "cached": 0}
    assert body["ttft_ms"] == {"mean": 1.5, "p50": 1.5, "p95": 1.5}
    assert body["tokens_per_second"]["p50"] == 100.0
    assert list(body["models"]) == ["echo"]


def test_many_who_ask_share_an_answer(
    api: APIClient, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    api.get(PATH)
    ended(TODAY).save()
    with django_assert_num_queries(0):
        assert api.get(PATH).json()["tasks"]["total"] == 0


def test_statistics_are_told_without_redis(
    api: APIClient, new_task: NewTask, valkey: Valkey
) -> None:
    finish.cancel(new_task())
    wait_until_enqueued()
    valkey.stop()
    assert api.get(PATH).json()["tasks"]["cancelled"] == 1


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("days=0", "days"),
        ("days=8", "days"),
        ("days=-1", "days"),
        ("days=1.5", "days"),
        ("days=", "days"),
        ("days=٣", "days"),
        ("date=", "date"),
        ("date=yesterday", "date"),
        ("date=2026-02-30", "date"),
        ("date=%00", "date"),
        (f"date={days_ago(-1)}", "date"),
        (f"date={days_ago(7)}", "date"),
        (f"date={TODAY}T00:00:00Z", "date"),
        (f"date={TODAY}&days=1", "date"),
        ("day=1", "day"),
    ],
)
def test_bad_question_is_refused(api: APIClient, query: str, field: str) -> None:
    response = api.get(f"{PATH}?{query}")
    assert response.status_code == 400
    assert response.json()["error"] == "validation_error"
    assert list(response.json()["details"]) == [field]


def test_deleted_model_is_told_too(api: APIClient) -> None:
    ended(TODAY, model_name="deleted since").save()
    assert list(api.get(PATH).json()["models"]) == ["deleted since"]
