"""Celery tasks: a message wakes a worker, the database says what it does."""

from collections.abc import Callable

import pytest
from django.conf import settings

from inference.execution import cloud_session
from inference.models import GenerationTask, Queue, TaskAttempt
from inference.tasks import generate
from tests.conftest import wait_until_enqueued

NewTask = Callable[..., GenerationTask]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def session_ends_with_its_last_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_session, "LINGER_SECONDS", 0)


def receive_message_of(task: GenerationTask) -> None:
    generate.apply(args=(task.pk,), routing_key=Queue.API)


def test_message_of_any_task_runs_all_that_are_due_in_exact_order(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MAX_CLOUD_CONCURRENCY", 1)
    least = [new_task(priority=0) for _ in range(10)]
    others = [new_task(priority=priority) for priority in (5, 11, 10.99)]
    wait_until_enqueued()
    receive_message_of(least[0])  # Redis has one priority for all of these
    ended = TaskAttempt.objects.filter(outcome="completed").order_by("pk")
    low, high, middle = (task.pk for task in others)
    in_order = [high, middle, low, *(task.pk for task in least)]
    assert list(ended.values_list("task", flat=True)) == in_order


def test_second_message_finds_nothing_to_do(new_task: NewTask) -> None:
    task = new_task()
    receive_message_of(task)
    receive_message_of(task)
    task.refresh_from_db()
    assert (task.status, task.attempt) == ("completed", 1)
