"""Tasks that go on with another model: when they do, on which queue, and what is told of it."""

import json
from collections.abc import Callable, Generator
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone
from rest_framework.test import APIClient

from conversations.models import Conversation
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import claim, finish, sweep
from inference.lifecycle.finish import Timings
from inference.models import GenerationTask, RegisteredModel, TaskAttempt
from inference.providers.base import GenerationRequest, Progress, StartOver
from monitoring.redis.client import client
from monitoring.streams.delta_stream import stream_key
from tests.conftest import wait_until, wait_until_enqueued
from tests.inference.execution.cloud_sessions import execute
from tests.inference.execution.test_attempt import ScriptedProvider, provider  # noqa: F401 (a fixture)
from tests.inference.lifecycle.test_lifecycle import answer, claimed, expire, fresh, lose, outcomes

NewTask = Callable[..., GenerationTask]
Script = Generator[str | StartOver, None, None]

TASKS = "/api/v1/tasks"
NO_TIMINGS = Timings()
DOWN = InferenceError("The provider is down.", ErrorCode.PROVIDER_UNAVAILABLE, retryable=True)


@pytest.fixture(autouse=True)
def models(db: None) -> None:
    make = RegisteredModel.objects.create
    make(name="second", provider="echo", config={"generation_params": {"max_tokens": 7}})
    make(name="third", provider="echo", max_output_tokens=100)
    make(name="local", provider="local", config={"model_path": "model.gguf"})


def fail(task: GenerationTask, failure: InferenceError = DOWN) -> bool:
    return finish.fail(claimed(task), failure, None, NO_TIMINGS)


def where(task: GenerationTask) -> tuple[str, str, str]:
    row = fresh(task)
    return (row.status, row.model_name, row.queue)


# What may be asked for

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"fallback_models": ["gone"]}, "There is no model gone"),
    ({"fallback_models": ["echo"]}, "echo is asked already"),
    ({"fallback_models": ["second", "second"]}, "second is asked already"),
    ({"fallback_models": ["third"], "max_tokens": 101}, "third gives at most 100 tokens"),
    ({"fallback_models": [f"m{i}" for i in range(9)]}, "no more than 8"),
    ({"fallback_models": "second"}, "Expected a list"),
    ({"fallback_models": [None]}, "may not be null"),
    ({"fallback_models": [1.5]}, "Not a valid string"),
    (
        {"model": "local", "fallback_models": ["echo"], "grammar": 'root ::= "a"'},
        "echo cannot run this task: grammar: Only local models take a grammar",
    ),
    (
        {
            "model": "local",
            "fallback_models": ["echo"],
            "response_format": {"type": "json_object"},
        },
        "echo cannot run this task: response_format",
    ),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED)
def test_fallback_that_could_not_run_is_refused(
    api: APIClient, echo: RegisteredModel, fields: dict[str, Any], reason: str
) -> None:
    response = api.post(TASKS, {"model": "echo", "prompt": "a"} | fields, format="json")
    assert response.status_code == 400
    assert response.json()["error"] == "validation_error"
    assert reason in json.dumps(response.json()["details"]["fallback_models"])
    assert not GenerationTask.objects.exists()


def test_each_fallback_gets_its_own_models_parameters(new_task: NewTask) -> None:
    task = new_task(temperature=0.5, fallback_models=["second", "local"])
    first, second, local = task.request["models"]
    assert (first["model"], first["params"]) == ("echo", task.request["params"])
    assert (second["model"], second["queue"]) == ("second", "api")
    assert second["params"] == {"max_tokens": 7, "stop_sequences": [], "temperature": 0.5}
    assert (local["model"], local["queue"]) == ("local", "gpu")
    assert local["params"]["top_k"] == 40


# Going on


def test_failed_task_is_queued_for_its_next_model(new_task: NewTask) -> None:
    task = new_task(fallback_models=["local", "second"])
    wait_until_enqueued()
    client().delete("gpu", "api")
    assert fail(task)
    assert where(task) == ("pending", "local", "gpu")
    row = fresh(task)
    assert (row.worker, row.lease_until, row.started_at) == ("", None, None)
    assert row.request["params"]["top_k"] == 40
    enqueued = [json.loads(message) for message in client().lrange("gpu\x06\x169", 0, -1)]
    assert [message["headers"]["id"] for message in enqueued] == [task.pk]
    assert fail(task)
    assert where(task) == ("pending", "second", "api")
    assert fail(task)
    assert where(task) == ("failed", "second", "api")


def test_attempts_tell_the_story(
    api: APIClient, new_task: NewTask, caplog: pytest.LogCaptureFixture
) -> None:
    task = new_task(fallback_models=["second"])
    fail(task)
    result = answer() | {"model": "second"}
    finish.complete(claimed(task), result, NO_TIMINGS)
    report = api.get(f"{TASKS}/{task.pk}/report").json()
    story = [(a["number"], a["model"], a["outcome"], a["error_code"]) for a in report["attempts"]]
    assert story == [
        (1, "echo", "failed", "provider_unavailable"),
        (2, "second", "completed", None),
    ]
    assert report["attempts"][0]["error"] == "The provider is down."
    assert (report["task"]["model"], report["task"]["result"]["model"]) == ("echo", "second")
    assert (report["task"]["error"], report["task"]["attempt"]) == (None, 2)
    assert f"Task {task.pk}: echo failed, second is asked: The provider is down." in caplog.messages
    found = api.get(TASKS, {"model": "echo"}).json()["results"]
    assert [each["task_id"] for each in found] == [task.pk]


@pytest.mark.parametrize(
    "code", ["content_filtered", "invalid_request", "timeout", "deadline_exceeded"]
)
def test_fault_of_the_request_falls_back_on_nobody(new_task: NewTask, code: str) -> None:
    task = new_task(fallback_models=["second"])
    assert fail(task, InferenceError("No.", ErrorCode(code)))
    assert where(task) == ("failed", "echo", "api")


@pytest.mark.parametrize(("overflow", "status"), [("error", "failed"), ("truncate", "pending")])
def test_too_long_a_context_falls_back_unless_that_is_an_error(
    new_task: NewTask, overflow: str, status: str
) -> None:
    task = new_task(fallback_models=["second"], context_overflow=overflow)
    fail(task, InferenceError("Too long.", ErrorCode.CONTEXT_LENGTH_EXCEEDED))
    assert fresh(task).status == status


def test_cancelled_task_asks_no_further_model(new_task: NewTask) -> None:
    task = new_task(fallback_models=["second"])
    lease = claimed(task)
    finish.cancel(fresh(task))
    assert finish.fail(lease, DOWN, None, NO_TIMINGS)
    assert where(task) == ("cancelled", "echo", "api")


def test_task_waiting_for_its_fallback_can_be_cancelled(new_task: NewTask) -> None:
    task = new_task(fallback_models=["second"])
    fail(task)
    assert finish.cancel(fresh(task))
    assert fresh(task).status == "cancelled"


def test_lost_lease_falls_back_on_nobody(new_task: NewTask) -> None:
    task = new_task(fallback_models=["second"])
    lease = claimed(task)
    lose(task)
    claimed(task)
    assert not finish.fail(lease, DOWN, None, NO_TIMINGS)
    assert where(task) == ("processing", "echo", "api")


def test_started_task_has_no_deadline_for_its_fallback(new_task: NewTask) -> None:
    task = new_task(fallback_models=["second"], deadline_seconds=30)
    lease = claimed(task)
    GenerationTask.objects.filter(pk=task.pk).update(deadline_at=timezone.now())
    finish.fail(lease, DOWN, None, NO_TIMINGS)
    sweep.sweep()
    assert fresh(task).status == "pending"
    assert claimed(task).attempt == 2


def test_conversation_waits_for_the_fallback(new_task: NewTask) -> None:
    conversation = Conversation.objects.create(owner="local")
    first = new_task(fallback_models=["second"], conversation_id=conversation.pk)
    next_turn = new_task(conversation_id=conversation.pk)
    fail(first)
    assert claim.claim(next_turn.pk) is None
    finish.complete(claimed(first), answer(), NO_TIMINGS)
    assert claim.claim(next_turn.pk)


def test_model_that_loses_its_workers_is_replaced(new_task: NewTask) -> None:
    task = new_task(fallback_models=["second"])
    for _ in range(settings.MAX_ATTEMPTS):
        claimed(task)
        lose(task)
    assert where(task) == ("pending", "second", "api")
    # Its workers may be lost as often again.
    for _ in range(settings.MAX_ATTEMPTS - 1):
        claimed(task)
        lose(task)
        assert fresh(task).status == "pending"
    claimed(task)
    lose(task)
    assert (fresh(task).status, fresh(task).error_code) == ("failed", "worker_lost")
    assert outcomes(task) == ["lost"] * 2 * settings.MAX_ATTEMPTS


def test_failed_attempts_are_no_lost_workers(new_task: NewTask) -> None:
    task = new_task(fallback_models=["second", "third"])
    fail(task)
    fail(task)
    claimed(task)
    lose(task)
    assert where(task) == ("pending", "third", "api")


@pytest.mark.django_db(transaction=True)
def test_deleted_model_falls_back(new_task: NewTask) -> None:
    task = new_task(fallback_models=["second"])
    RegisteredModel.objects.filter(name="echo").delete()
    execute(claimed(task))
    assert where(task) == ("pending", "second", "api")
    execute(claimed(task))
    result = fresh(task).result
    assert result is not None
    assert (result["text"], result["model"]) == ("one two three", "second")
    first = TaskAttempt.objects.get(task=task, number=1)
    assert first.error_code == "model_not_found"


# Starting over


def interrupted(num_times: int) -> Callable[[GenerationRequest, Progress], Script]:
    def script(request: GenerationRequest, progress: Progress) -> Script:
        stream = stream_key(request.request_id.partition("#")[0])
        for number in range(num_times):
            yield "half of an ans"
            wait_until(lambda: client().xlen(stream) > number)  # noqa: B023 (called at once)
            yield StartOver(DOWN)
        yield "all "
        yield "of it"

    return script


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("num_times", [1, 3])
def test_answer_that_starts_over_is_a_new_attempt(
    new_task: NewTask,
    provider: ScriptedProvider,  # noqa: F811
    num_times: int,
) -> None:
    provider.script = interrupted(num_times)  # type: ignore[assignment]
    task = new_task()
    execute(claimed(task))
    row = fresh(task)
    assert row.result is not None
    assert (row.status, row.result["text"], row.attempt) == (
        "completed",
        "all of it",
        num_times + 1,
    )
    assert outcomes(task) == ["failed"] * num_times + ["completed"]
    assert task.attempts.get(number=1).error_code == "provider_unavailable"
    ids = [entry_id for entry_id, _ in client().xrange(stream_key(task.pk))]
    assert ids[0] == "1-14"
    assert ids[-1] == f"{num_times + 1}-9"


@pytest.mark.django_db(transaction=True)
def test_lost_lease_starts_nothing_over(
    new_task: NewTask,
    provider: ScriptedProvider,  # noqa: F811
) -> None:
    task = new_task()

    def is_lost() -> bool:
        expire(task)
        sweep.sweep()  # unless its worker has just renewed the lease
        return fresh(task).status == "pending"

    def script(request: GenerationRequest, progress: Progress) -> Script:
        yield "half of"
        wait_until(is_lost)
        claimed(task)
        yield StartOver(DOWN)
        yield "never said"

    provider.script = script  # type: ignore[assignment]
    execute(claimed(task))
    wait_until(lambda: fresh(task).attempt == 2)  # the script may go on for longer
    row = fresh(task)
    assert (row.status, row.attempt, row.result) == ("processing", 2, None)
    assert outcomes(task) == ["lost"]
