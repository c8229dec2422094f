"""Celery tasks: a message wakes a worker, the database says what it does."""

from collections.abc import Callable

import pytest

from inference.models import GenerationTask, Queue
from inference.tasks import generate
from tests.conftest import wait_until_enqueued

NewTask = Callable[..., GenerationTask]

pytestmark = pytest.mark.django_db(transaction=True)


def receive_message_of(task: GenerationTask) -> None:
    generate.apply(args=(task.pk,), routing_key=Queue.API)


def test_message_of_any_task_runs_the_most_urgent_one(new_task: NewTask) -> None:
    least = [new_task(priority=0) for _ in range(10)]
    others = [new_task(priority=priority) for priority in (5, 11, 10.99)]
    wait_until_enqueued()
    ended: list[str] = []
    for task in [*least, *others]:  # Redis has one priority for all of these
        receive_message_of(task)
        completed = GenerationTask.objects.filter(status="completed")
        ended += completed.exclude(pk__in=ended).values_list("pk", flat=True)
    low, high, middle = (task.pk for task in others)
    assert ended == [high, middle, low, *(task.pk for task in least)]


def test_second_message_finds_nothing_to_do(new_task: NewTask) -> None:
    task = new_task()
    receive_message_of(task)
    receive_message_of(task)
    task.refresh_from_db()
    assert (task.status, task.attempt) == ("completed", 1)
