"""Waking workers through a real broker."""

import json
import time
from collections.abc import Callable
from typing import Any

import kombu
import pytest
import redis
from celery import current_app
from django.conf import settings
from django.db import OperationalError, connection

from inference import dispatch
from inference.lifecycle import sweep
from inference.models import GenerationTask, Queue
from monitoring.redis.client import client
from tests.conftest import Valkey, wait_until, wait_until_enqueued

NewTask = Callable[..., GenerationTask]
SEPARATOR = "\x06\x16"


def messages(key: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in client().lrange(key, 0, -1)]


@pytest.mark.parametrize(
    ("priority", "expected"),
    [
        *((0, 9), (1, 9), (11.1, 9), (11.2, 8), (22.2, 8), (22.3, 7), (50, 5), (66.6, 4)),
        *((66.7, 3), (99.9, 1), (100, 0)),
    ],
)
def test_priority_maps_to_the_ten_of_redis(priority: float, expected: int) -> None:
    assert GenerationTask(priority=priority).broker_priority == expected


def test_more_urgent_is_never_behind_in_redis() -> None:
    steps = [GenerationTask(priority=tenth / 10).broker_priority for tenth in range(1001)]
    assert steps == sorted(steps, reverse=True)
    assert set(steps) == set(range(10))


@pytest.mark.parametrize(
    ("priority", "key"), [(100, "api"), (50, f"api{SEPARATOR}5"), (0, f"api{SEPARATOR}9")]
)
def test_message_carries_the_id_alone(new_task: NewTask, priority: float, key: str) -> None:
    task = new_task(priority=priority, prompt="a secret prompt")
    wait_until_enqueued()
    [message] = messages(key)
    assert message["headers"]["id"] == task.pk
    assert message["headers"]["task"] == dispatch.GENERATE
    assert message["headers"]["ignore_result"] is True
    assert message["properties"]["priority"] == task.broker_priority
    assert "secret" not in json.dumps(message)


def test_waiting_messages_counts_all_priorities(new_task: NewTask) -> None:
    for priority in (0, 1, 30, 60, 100):
        new_task(priority=priority)
    wait_until_enqueued()
    assert dispatch.waiting_messages(Queue.API) == 5
    assert dispatch.waiting_messages(Queue.GPU) == 0


def test_broker_takes_the_most_urgent_message_first(new_task: NewTask) -> None:
    from celery import current_app  # the broker's own consumer, as the workers use it

    tasks = {priority: new_task(priority=priority).pk for priority in (1, 100, 40, 80)}
    wait_until_enqueued()
    with current_app.connection_for_read() as connection:
        of_workers: Any = current_app.amqp.queues[Queue.API]
        queue = connection.SimpleQueue(of_workers)
        taken = [queue.get(timeout=5).headers["id"] for _ in tasks]
        queue.close()
    assert taken == [tasks[priority] for priority in (100, 80, 40, 1)]


@pytest.mark.django_db(transaction=True)
def test_dead_broker_delays_no_submission(new_task: NewTask, valkey: Valkey) -> None:
    valkey.stop()
    started = time.monotonic()
    tasks = [new_task() for _ in range(20)]
    assert time.monotonic() - started < 2
    for task in tasks:
        wait_until(lambda task=task: is_marked(task))  # type: ignore[misc]


def is_marked(task: GenerationTask) -> bool:
    task.refresh_from_db()
    return task.enqueued_at is None


@pytest.mark.django_db(transaction=True)
def test_enqueueing_without_a_broker_takes_no_longer_than_its_time_limit(
    new_task: NewTask, valkey: Valkey
) -> None:
    tasks = [new_task() for _ in range(20)]
    wait_until_enqueued()
    valkey.stop()
    started = time.monotonic()
    assert not dispatch.enqueue(dispatch.generate(tasks))
    assert not dispatch.enqueue(dispatch.generate(tasks))
    assert time.monotonic() - started < settings.REDIS_TIMEOUT_SECONDS + 1
    assert all(is_marked(task) for task in tasks)


@pytest.mark.django_db(transaction=True)
def test_enqueueing_without_broker_and_database_does_not_raise(
    new_task: NewTask, valkey: Valkey
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("the database system is starting up")

    tasks = [new_task()]
    wait_until_enqueued()
    valkey.stop()
    with connection.execute_wrapper(fail):
        assert not dispatch.enqueue(dispatch.generate(tasks))
    assert not is_marked(tasks[0])


@pytest.mark.django_db(transaction=True)
def test_sweep_enqueues_when_the_broker_is_back(new_task: NewTask, valkey: Valkey) -> None:
    valkey.stop()
    task = new_task()
    wait_until(lambda: is_marked(task))
    sweep.sweep()  # without Redis it repairs what it can
    valkey.start()
    client().flushall()

    def is_enqueued() -> bool:
        sweep.sweep()
        return bool(dispatch.waiting_messages(Queue.API))

    wait_until(is_enqueued)
    assert not is_marked(task)


def test_request_for_a_model_goes_before_all_tasks_and_reaches_running_sessions(
    valkey: Valkey,
) -> None:
    assert client().mget(dispatch.GPU_NEWS_KEYS) == [None, None]
    dispatch.enqueue([dispatch.SERVE_MODEL_REQUESTS])
    [message] = messages("gpu")
    assert message["headers"]["task"] == dispatch.SERVE_MODEL_REQUESTS.name
    assert message["properties"]["priority"] == 0
    assert client().mget(dispatch.GPU_NEWS_KEYS) == ["1", None]


def test_request_for_a_model_does_without_the_broker(valkey: Valkey) -> None:
    valkey.stop()
    dispatch.enqueue([dispatch.SERVE_MODEL_REQUESTS])


def test_worker_takes_the_next_message_though_redis_was_not_told_of_the_last(
    valkey: Valkey,
) -> None:
    with current_app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        channel.basic_qos(0, 1, False)
        queue = kombu.Queue("api", channel=channel)
        queue.declare()
        kombu.Producer(channel).publish("x", routing_key="api")
        message = queue.get()
        assert message is not None
        assert not channel.qos.can_consume()
        valkey.stop()
        with pytest.raises(redis.ConnectionError):
            message.ack()
        assert channel.qos.can_consume()
        valkey.start()
