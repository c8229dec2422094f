"""What the feed is told in the life of a task, read back from the log of events."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.conf import LazySettings
from django.utils import timezone

from inference import events
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import claim, finish, sweep
from inference.lifecycle.finish import Timings
from inference.loading import requests
from inference.models import Cost, GenerationTask, RegisteredModel, TaskResult
from monitoring.events import log, publisher
from monitoring.events.log import LoggedEvent
from monitoring.redis import outbox
from monitoring.redis.client import client
from tests.conftest import Valkey
from tests.inference.lifecycle.test_lifecycle import expire

NewTask = Callable[..., GenerationTask]

RESULT = TaskResult(
    text="one two",
    finish_reason="stop",
    usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cached_tokens": 1},
    model="echo",
    parsed=None,
    extra={},
)

NOTHING_KNOWN = {"estimated_start_at": None, "estimated_finish_at": None, "eta_seconds": None}


def told() -> list[LoggedEvent]:
    """Everything that was logged so far."""
    outbox.flush()
    return log.read(0).events


def names() -> list[str]:
    return [event.type for event in told()]


def claimed(task: GenerationTask) -> claim.Lease:
    lease = claim.claim(task.pk)
    assert lease is not None
    return lease


def test_completed_task_is_told_from_its_submission_to_its_end(new_task: NewTask) -> None:
    task = new_task(priority=7, owner="somebody")
    lease = claimed(task)
    lease.cost = Cost(gpu_seconds=0.5, energy_joules=20.0, cost_nano_usd=3_000_000)
    finish.complete(lease, RESULT, Timings(ttft_ms=4.0, inference_ms=9.0))

    queued, started, completed = told()

    assert [queued.type, started.type, completed.type] == [
        "task.queued",
        "task.started",
        "task.completed",
    ]
    assert {event.owner for event in told()} == {"somebody"}
    assert queued.data == {
        "task_id": task.pk,
        "model": "echo",
        "queue": "api",
        "priority": 7.0,
        "attempt": 0,
        **NOTHING_KNOWN,
    }
    assert started.data["attempt"] == 1
    assert started.data["queue_wait_ms"] >= 0
    assert completed.data == {
        "task_id": task.pk,
        "model": "echo",
        "attempt": 1,
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cached_tokens": 1,
        "queue_wait_ms": started.data["queue_wait_ms"],
        "ttft_ms": 4.0,
        "inference_ms": 9.0,
        "total_ms": started.data["queue_wait_ms"] + 9.0,
        "error": None,
        "error_code": None,
        "gpu_seconds": 0.5,
        "energy_joules": 20.0,
        "cost_usd": 0.003,
    }


def test_end_without_a_cost_says_null(new_task: NewTask) -> None:
    finish.cancel(new_task())
    cancelled = told()[-1].data
    assert {cancelled[name] for name in ("gpu_seconds", "energy_joules", "cost_usd")} == {None}


def test_failure_is_told_with_its_reason_and_no_text(new_task: NewTask) -> None:
    failure = InferenceError("It broke.", ErrorCode.PROVIDER_ERROR)
    finish.fail(claimed(new_task()), failure, None, Timings())
    failed = told()[-1]
    assert failed.type == "task.failed"
    assert (failed.data["error"], failed.data["error_code"]) == ("It broke.", "provider_error")
    assert failed.data["finish_reason"] is None
    assert failed.data["completion_tokens"] == 0


def test_no_event_holds_a_prompt_or_an_answer(new_task: NewTask) -> None:
    task = new_task(prompt="a secret question")
    answer = {**RESULT, "text": "a secret answer"}
    finish.complete(claimed(task), TaskResult(**answer), Timings())  # type: ignore[typeddict-item]
    assert "secret" not in str(told())


def test_cancel_before_the_start_is_told(new_task: NewTask) -> None:
    finish.cancel(new_task())
    assert names() == ["task.queued", "task.cancelled"]


def test_cancel_that_comes_too_late_tells_nothing(new_task: NewTask) -> None:
    task = new_task()
    finish.complete(claimed(task), RESULT, Timings())
    finish.cancel(task)
    assert names()[-1] == "task.completed"


def test_missed_deadline_is_told(new_task: NewTask) -> None:
    task = new_task(deadline_seconds=60)
    past = timezone.now() - timedelta(seconds=1)
    GenerationTask.objects.filter(pk=task.pk).update(deadline_at=past)
    sweep.sweep()
    failed = told()[-1]
    assert (failed.type, failed.data["error_code"]) == ("task.failed", "deadline_exceeded")


def test_lost_worker_is_told_as_queued_again_and_at_last_as_failed(
    new_task: NewTask, settings: LazySettings
) -> None:
    settings.MAX_ATTEMPTS = 3
    task = new_task()
    for _ in range(3):
        claimed(task)
        expire(task)
        sweep.sweep()
    assert names() == [
        "task.queued",
        *("task.started", "task.queued"),
        *("task.started", "task.queued"),
        *("task.started", "task.failed"),
    ]
    assert [e.data["attempt"] for e in told() if e.type == "task.queued"] == [0, 1, 2]
    assert told()[-1].data["error_code"] == "worker_lost"


def test_lost_lease_tells_no_end(new_task: NewTask) -> None:
    lease = claimed(new_task())
    GenerationTask.objects.filter(pk=lease.task.pk).update(attempt=2)
    assert not finish.complete(lease, RESULT, Timings())
    assert names()[-1] == "task.started"


def test_repeated_idempotency_key_is_told_once(new_task: NewTask) -> None:
    new_task(idempotency_key="k")
    new_task(idempotency_key="k")
    assert names() == ["task.queued"]


def test_progress_shows_the_end_of_a_long_text_and_is_not_logged(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[LoggedEvent] = []

    def put(event: LoggedEvent, *, is_logged: bool, once: str = "") -> None:
        if not is_logged:
            sent.append(event)

    monkeypatch.setattr(publisher, "put", put)
    events.progressed(new_task(), 5000, "a" * 3000 + "z")
    [progress] = sent
    assert progress.type == "task.progress"
    assert progress.data["partial_text"] == "a" * 1999 + "z"
    monkeypatch.undo()
    assert names() == []


def test_model_of_a_dead_worker_is_told_as_unloaded(
    valkey: Valkey, echo: RegisteredModel, dead_worker: str
) -> None:
    echo.set_status(RegisteredModel.Status.LOADED, dead_worker)
    requests.sweep()
    assert [(e.type, e.data) for e in told()] == [
        ("model.unloaded", {"model": "echo", "worker": dead_worker})
    ]


def test_end_that_a_killed_process_has_not_told_is_told_once(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_TELLING_SECONDS", 0.0)
    sweep.sweep()
    leases = [claimed(new_task(owner="somebody")) for _ in range(2)]
    finish.complete(leases[0], RESULT, Timings())
    with monkeypatch.context() as killed:
        killed.setattr(finish, "announce_end", lambda task: None)
        finish.complete(leases[1], RESULT, Timings())
    assert names()[4:] == ["task.completed"]

    sweep.sweep()
    sweep.sweep()
    events.tell_end(GenerationTask.objects.get(pk=leases[1].task.pk))  # not killed, but late

    ends = told()[4:]
    assert [event.data["task_id"] for event in ends] == [lease.task.pk for lease in leases]
    assert {(event.type, event.owner) for event in ends} == {("task.completed", "somebody")}
    assert ends[1].data | {"task_id": ""} == ends[0].data | {
        "task_id": "",
        "queue_wait_ms": ends[1].data["queue_wait_ms"],
    }


def test_redis_that_lost_all_has_no_end_told_again(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_TELLING_SECONDS", 0.0)
    sweep.sweep()
    finish.complete(claimed(new_task()), RESULT, Timings())
    outbox.flush()
    client().flushall()
    sweep.sweep()
    sweep.sweep()
    assert names() == []
