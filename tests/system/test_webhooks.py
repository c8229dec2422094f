"""Webhooks of the running service arrive, whatever dies on the way."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import faults
from benchmarks.running_service import API_WORKER, SMOLLM2, RunningService, wait_for
from tests.webhook_receiver import Receiver, Reply, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def submit(service: RunningService, receiver: Receiver, model: str = "echo") -> str:
    return service.submit("one two three", model, max_tokens=8, webhook_url=receiver.url())


def delivered(service: RunningService, task_id: str, limit_seconds: float = 30) -> dict[str, Any]:
    """The task's delivery once it has ended, as the report has it."""

    def ended() -> dict[str, Any] | None:
        deliveries = service.report(task_id)["webhook_deliveries"]
        return next((each for each in deliveries if each["status"] == "delivered"), None)

    return wait_for(ended, limit_seconds)


def assert_one_webhook(
    service: RunningService, receiver: Receiver, task_id: str, delivery: dict[str, Any]
) -> None:
    """All that arrived is the same webhook, signed with the service's own secret."""
    secret = (service.var_dir / "webhook_secret").read_text()
    assert {call.webhook_id for call in receiver.calls} == {delivery["webhook_id"]}
    told = [call.verified(secret) for call in receiver.calls]
    body = {"type": "task.completed", "data": service.task(task_id)}
    assert [{"type": each["type"], "data": each["data"]} for each in told] == [body] * len(told)


@pytest.mark.parametrize("model", ["echo", SMOLLM2])
def test_webhook_of_any_worker_arrives(
    service: RunningService, receiver: Receiver, model: str
) -> None:
    task_id = submit(service, receiver, model)
    delivery = delivered(service, task_id)
    assert len(receiver.calls) == delivery["num_attempts"] == 1
    assert_one_webhook(service, receiver, task_id, delivery)


def test_cancelled_task_tells_so(service: RunningService, receiver: Receiver) -> None:
    task_id = service.submit("word " * 1000, "slow-echo", webhook_url=receiver.url())
    service.processing(task_id)
    service.http.post(f"/tasks/{task_id}/cancel").raise_for_status()
    assert delivered(service, task_id)["event"] == "task.cancelled"


def test_webhooks_do_not_wait_for_the_api_worker(
    service: RunningService, receiver: Receiver
) -> None:
    with faults.stopped(service.pid(API_WORKER)):
        task_id = submit(service, receiver)
        service.http.post(f"/tasks/{task_id}/cancel").raise_for_status()
        assert delivered(service, task_id)["event"] == "task.cancelled"


def test_worker_and_valkey_killed_between_failures(
    service: RunningService, receiver: Receiver
) -> None:
    receiver.replies = [Reply(503)] * 5
    task_id = submit(service, receiver)
    wait_for(lambda: len(receiver.calls) >= 2)
    faults.kill_default_worker(service)
    wait_for(lambda: len(receiver.calls) >= 3, 60)
    faults.empty_valkey(service)
    delivery = delivered(service, task_id, 60)
    assert len(receiver.calls) == delivery["num_attempts"] == 6
    statuses = [entry["status_code"] for entry in delivery["log"]]
    assert statuses[-1] == 200
    assert set(statuses[:-1]) == {503}
    assert_one_webhook(service, receiver, task_id, delivery)


def test_worker_killed_while_it_delivers(service: RunningService, receiver: Receiver) -> None:
    arrived = threading.Event()

    def hold_up(connection: socket.socket) -> None:
        arrived.set()
        connection.recv(1)  # until the worker is gone

    receiver.replies = [Reply(act=hold_up)]
    task_id = submit(service, receiver)
    assert arrived.wait(20)
    faults.kill_default_worker(service)
    delivery = delivered(service, task_id, 60)
    assert (delivery["num_attempts"], len(delivery["log"])) == (2, 1)
    assert len(receiver.calls) == 2
    assert_one_webhook(service, receiver, task_id, delivery)
