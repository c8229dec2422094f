"""GET /monitor/queue: what waits, what runs, and who works on it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from inference import dispatch
from inference.api import queue_stats
from inference.lifecycle import finish
from inference.models import GenerationTask, RegisteredModel
from monitoring import database_clock
from monitoring.api.principal import Principal, Scope
from monitoring.hardware import workers
from monitoring.redis.client import client
from tests.conftest import Valkey, client_of, wait_until, wait_until_enqueued
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed

NewTask = Callable[..., GenerationTask]
PATH = "/api/v1/monitor/queue"


def rows(status: str, number: int, **fields: Any) -> None:
    """Tasks in the database alone, without messages."""
    now = timezone.now()
    values = {"owner": "local", "model_name": "echo", "queue": "api", "request": {}} | fields
    if status == "processing":
        values |= {"started_at": now, "lease_until": now + timedelta(minutes=1), "attempt": 1}
    GenerationTask.objects.bulk_create(
        [
            GenerationTask(status=status, created_at=now, updated_at=now, **values)
            for _ in range(number)
        ]
    )


def queues(api: APIClient) -> dict[str, Any]:
    response = api.get(PATH)
    assert response.status_code == 200
    found: dict[str, Any] = response.json()["queues"]
    return found


@pytest.mark.parametrize("path", [PATH, f"{PATH}/"])
def test_empty_queues_are_shown(api: APIClient, path: str) -> None:
    nothing: dict[str, Any] = {
        "pending": 0,
        "processing": 0,
        "workers": 0,
        "oldest_wait_seconds": None,
        "by_priority": {},
        "messages": {},
    }
    assert api.get(path).json() == {
        "queues": {"gpu": nothing, "api": nothing},
        "totals": {"pending": 0, "processing": 0},
        "processing_tasks": [],
    }


def test_depth_is_told_by_exact_priority(api: APIClient, new_task: NewTask) -> None:
    for priority in (1, 9.5, 1, 9.25):
        new_task(priority=priority)
    rows("pending", 2, queue="gpu", priority=100)
    claimed(new_task(priority=50))
    wait_until_enqueued()

    body = api.get(PATH).json()

    assert body["queues"]["api"]["by_priority"] == {"9.5": 1, "9.25": 1, "1": 2}
    assert list(body["queues"]["api"]["by_priority"]) == ["9.5", "9.25", "1"]
    assert (body["queues"]["api"]["pending"], body["queues"]["api"]["processing"]) == (4, 1)
    assert body["queues"]["gpu"]["by_priority"] == {"100": 2}
    assert body["totals"] == {"pending": 6, "processing": 1}
    # A message for each task that was submitted; the one that was claimed has left its behind.
    assert body["queues"]["api"]["messages"] == {"9": 4, "5": 1}
    assert body["queues"]["gpu"]["messages"] == {}


def test_oldest_wait_is_that_of_the_first_submitted(api: APIClient, echo: RegisteredModel) -> None:
    rows("pending", 2)
    early = timezone.now() - timedelta(seconds=90)
    oldest = GenerationTask.objects.first()
    assert oldest is not None
    GenerationTask.objects.filter(pk=oldest.pk).update(created_at=early, priority=50)
    assert 90 <= queues(api)["api"]["oldest_wait_seconds"] < 120
    assert queues(api)["gpu"]["oldest_wait_seconds"] is None


def test_other_queues_are_shown_when_there_is_something_to_show(api: APIClient) -> None:
    rows("pending", 1, queue="embeddings")
    stop = workers.announce("w1", ["default", "api"])
    try:
        wait_until(lambda: workers.count(["default"])["default"])
        found = queues(api)
    finally:
        stop.set()
    assert list(found) == ["gpu", "api", "embeddings", "default"]
    assert {name: state["workers"] for name, state in found.items()} == {
        "gpu": 0,
        "api": 1,
        "embeddings": 0,
        "default": 1,
    }


def test_running_tasks_are_named_longest_first(api: APIClient, new_task: NewTask) -> None:
    first, second = new_task(priority=9.5), new_task()
    for task in (second, first):
        claimed(task)
    early = timezone.now() - timedelta(minutes=5)
    GenerationTask.objects.filter(pk=first.pk).update(started_at=early)
    named = api.get(PATH).json()["processing_tasks"]
    assert [task["task_id"] for task in named] == [first.pk, second.pk]
    first.refresh_from_db()
    assert named[0] == {
        "task_id": first.pk,
        "model": "echo",
        "queue": "api",
        "attempt": 1,
        "worker": first.worker,
        "started_at": early.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "priority": 9.5,
    }


def test_owner_is_shown_its_own_tasks_alone_and_the_scope_monitor_all(
    api: APIClient, new_task: NewTask
) -> None:
    new_task(owner="alice", priority=3)
    own = claimed(new_task(owner="alice", priority=9)).task
    other = claimed(new_task(owner="bob", priority=8)).task
    new_task(owner="bob", priority=2)
    alice = client_of(Principal("a key", "alice", frozenset({Scope.TASKS})))
    body = alice.get(PATH).json()
    assert body["totals"] == {"pending": 1, "processing": 1}
    assert body["queues"]["api"]["by_priority"] == {"3": 1}
    assert body["queues"]["api"]["messages"] is None
    assert [task["task_id"] for task in body["processing_tasks"]] == [own.pk]
    body = api.get(PATH).json()
    assert body["totals"] == {"pending": 2, "processing": 2}
    assert {task["task_id"] for task in body["processing_tasks"]} == {own.pk, other.pk}


def test_at_most_a_hundred_tasks_and_priorities_are_listed(api: APIClient) -> None:
    rows("processing", 101)
    for priority in range(101):
        rows("pending", 1, priority=priority / 2)
    body = api.get(PATH).json()
    assert body["totals"] == {"pending": 101, "processing": 101}
    assert len(body["processing_tasks"]) == 100
    by_priority = body["queues"]["api"]["by_priority"]
    assert len(by_priority) == 100
    assert "50" in by_priority
    assert "0" not in by_priority


def test_ended_tasks_count_nowhere(api: APIClient, new_task: NewTask) -> None:
    finish.complete(claimed(new_task()), answer(), TIMINGS)
    finish.cancel(new_task())
    assert api.get(PATH).json()["totals"] == {"pending": 0, "processing": 0}


def test_ten_thousand_tasks_take_two_queries(
    api: APIClient, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for priority in (1, 5, 9.5, 100):
        rows("pending", 2500, priority=priority)
    database_clock.now()  # on PostgreSQL it is asked, every few seconds
    with django_assert_num_queries(2):
        assert queue_stats.read_now("local")["totals"]["pending"] == 10_000
    with django_assert_num_queries(2):
        api.get(PATH)


def test_many_who_ask_share_an_answer(
    api: APIClient,
    monkeypatch: pytest.MonkeyPatch,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    monkeypatch.setattr(queue_stats, "_CACHED_SECONDS", 60)
    first = api.get(PATH).json()
    rows("pending", 1)
    with django_assert_num_queries(0):
        assert api.get(PATH).json() == first


def test_queries_go_by_the_indexes_of_unfinished_tasks(valkey: Valkey, new_task: NewTask) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("the plan is SQLite's")
    rows("completed", 500)
    claimed(new_task())
    with CaptureQueriesContext(connection) as captured:
        queue_stats.read_now(None)
        queue_stats.read_now("local")
    plans = []
    for query in captured.captured_queries:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {query['sql']}")
            plans.append(" ".join(row[3] for row in cursor.fetchall()))
    assert "task_claim" in plans[0]
    assert "generationtask_lease" in plans[1]
    assert "task_pending_of" in plans[2]


def test_database_is_told_without_redis(api: APIClient, new_task: NewTask, valkey: Valkey) -> None:
    new_task()
    claimed(new_task())
    wait_until_enqueued()
    valkey.stop()
    body = api.get(PATH).json()
    assert body["totals"] == {"pending": 1, "processing": 1}
    assert (body["queues"]["api"]["workers"], body["queues"]["api"]["messages"]) == (None, None)
    assert len(body["processing_tasks"]) == 1


def test_unknown_parameter_is_refused(api: APIClient) -> None:
    response = api.get(f"{PATH}?queue=gpu")
    assert response.status_code == 400
    assert response.json()["error"] == "validation_error"
    assert "queue" in response.json()["details"]


def test_messages_are_counted_by_priority(valkey: Valkey) -> None:
    client().rpush("gpu", "a")
    client().rpush("gpu\x06\x169", "b", "c")
    assert dispatch.messages_by_priority(["gpu", "api"]) == {"gpu": {"0": 1, "9": 2}, "api": {}}
    assert dispatch.waiting_messages("gpu") == 3
