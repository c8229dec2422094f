"""Ended tasks anew: requeued ones, and those that failed for no fault of the request."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from conversations.models import Conversation
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import claim, finish
from inference.models import GenerationTask, RegisteredModel
from tests.inference.api.test_tasks import NO_TASK, TASKS, end
from tests.inference.lifecycle.test_lifecycle import fresh

NewTask = Callable[..., GenerationTask]
pytestmark = pytest.mark.usefixtures("echo")


def fail(task: GenerationTask, code: ErrorCode = ErrorCode.PROVIDER_UNAVAILABLE) -> GenerationTask:
    lease = claim.claim(task.pk)
    assert lease is not None
    assert finish.fail(lease, InferenceError("It is down.", code), None, finish.Timings())
    return fresh(task)


def requeue(api: APIClient, task: GenerationTask) -> Any:
    return api.post(f"{TASKS}/{task.pk}/requeue")


def dead(api: APIClient, **query: str) -> list[str]:
    body = api.get(f"{TASKS}/dead", query).json()
    return [task["task_id"] for task in body["results"]]


def test_requeued_task_is_the_same_anew_and_both_are_linked(
    api: APIClient, new_task: NewTask
) -> None:
    task = fail(new_task(priority=7, temperature=0.5, metadata={"a": 1}, idempotency_key="k"))
    response = requeue(api, task)
    body = response.json()
    assert response.status_code == 201
    assert (body["status"], body["attempt"]) == ("pending", 0)
    assert (body["requeued_from"], body["requeued_as"]) == (task.pk, None)
    assert api.get(f"{TASKS}/{task.pk}").json()["requeued_as"] == body["task_id"]
    new = GenerationTask.objects.get(pk=body["task_id"])
    assert (new.priority, new.metadata, new.idempotency_key) == (7, {"a": 1}, None)
    assert (new.request, new.owner) == (task.request | {"num_retries": 0}, task.owner)
    assert fresh(end(new)).status == "completed"


def test_task_that_has_not_ended_is_not_requeued(api: APIClient, new_task: NewTask) -> None:
    response = requeue(api, new_task())
    assert (response.status_code, response.json()["error"]) == (409, "conflict")


def test_second_requeue_names_the_first_unless_that_is_gone(
    api: APIClient, new_task: NewTask
) -> None:
    task = fail(new_task())
    first = GenerationTask.objects.get(pk=requeue(api, task).json()["task_id"])
    second = requeue(api, task)
    assert second.status_code == 409
    assert GenerationTask.objects.count() == 2
    assert requeue(api, end(first)).status_code == 201
    first.refresh_from_db()
    assert finish.delete(first)
    assert requeue(api, task).status_code == 201


def test_requeue_says_what_is_gone(api: APIClient, new_task: NewTask) -> None:
    task = fail(new_task())
    RegisteredModel.objects.all().delete()
    response = requeue(api, task)
    assert response.status_code == 400
    assert "model" in response.json()["details"]


def test_task_whose_conversation_asked_is_not_requeued_without_it(api: APIClient) -> None:
    conversation = Conversation.objects.create(owner="local")
    conversation.append({"role": "user", "content": "Well?"})
    fields = {"model": "echo", "conversation_id": conversation.pk}
    body = api.post(TASKS, fields, format="json").json()
    task = fail(GenerationTask.objects.get(pk=body["task_id"]))
    conversation.remove()
    response = requeue(api, task)
    assert (response.status_code, response.json()["error"]) == (400, "validation_error")


def test_others_tasks_are_neither_requeued_nor_dead(api: APIClient, new_task: NewTask) -> None:
    task = fail(new_task(owner="other"))
    assert requeue(api, task).status_code == 404
    assert api.post(f"{NO_TASK}/requeue").status_code == 404
    assert dead(api) == []


def test_requeue_counts_as_a_pending_task(api: APIClient, new_task: NewTask, settings: Any) -> None:
    task = fail(new_task())
    settings.MAX_PENDING_TASKS = 0
    response = requeue(api, task)
    assert (response.status_code, response.json()["error"]) == (503, "queue_full")
    assert fresh(task).requeued_as is None


def test_dead_are_those_that_may_succeed_another_time(api: APIClient, new_task: NewTask) -> None:
    codes = [ErrorCode.WORKER_LOST, ErrorCode.INVALID_REQUEST, ErrorCode.PROVIDER_ERROR]
    lost, _, refused = [fail(new_task(), code) for code in codes]
    fail(new_task(), ErrorCode.TIMEOUT)
    end(new_task())
    new_task()
    assert dead(api) == [refused.pk, lost.pk]
    assert dead(api, model="nowhere") == []
    assert dead(api, limit="1") == [refused.pk]
    requeue(api, refused)
    assert dead(api) == [lost.pk]


@pytest.mark.parametrize("query", [{"wait": "1"}, {"created_after": "x"}, {"limit": "0"}])
def test_dead_refuses_bad_parameters(api: APIClient, query: dict[str, str]) -> None:
    assert api.get(f"{TASKS}/dead", query).status_code == 400
