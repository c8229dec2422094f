"""Running a claimed task: what a provider does, and what the row says afterwards."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator

import pytest
from django.db import OperationalError

from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError
from inference.execution import cloud_session
from inference.execution.attempt import Attempt
from inference.lifecycle import finish, sweep
from inference.lifecycle.claim import Lease
from inference.models import GenerationTask, Queue, RegisteredModel
from inference.providers.base import GenerationRequest, Progress, Provider
from monitoring.events import publisher
from monitoring.events.log import LoggedEvent
from monitoring.redis.client import client
from monitoring.streams.delta_stream import stream_key
from tests.conftest import wait_until
from tests.inference.execution.cloud_sessions import execute
from tests.inference.lifecycle.test_lifecycle import claimed, expire, fresh, outcomes

NewTask = Callable[..., GenerationTask]
# Committed rows, which the lease renewer's thread reads too.
pytestmark = pytest.mark.django_db(transaction=True)

Script = Callable[[GenerationRequest, Progress], Generator[str, None, None]]


class ScriptedProvider(Provider):
    """Says what a test wants; `is_closed` tells that the generator was closed."""

    queue = Queue.API
    script: Script
    is_closed = False

    async def generate(
        self, request: GenerationRequest, progress: Progress
    ) -> AsyncGenerator[str, None]:
        script = self.script(request, progress)
        try:
            # In a thread: scripts may use the database.
            while (delta := await asyncio.to_thread(next, script, None)) is not None:
                yield delta
        finally:
            script.close()
            self.is_closed = True


@pytest.fixture
def provider(echo: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> ScriptedProvider:
    scripted = ScriptedProvider(echo)
    monkeypatch.setattr(cloud_session, "provider_for", lambda _: scripted)
    return scripted


def run(task: GenerationTask) -> GenerationTask:
    execute(claimed(task))
    return fresh(task)


def test_answer_comes_with_usage_and_times(new_task: NewTask, provider: ScriptedProvider) -> None:
    seen: list[GenerationRequest] = []

    def script(request: GenerationRequest, progress: Progress) -> Generator[str, None, None]:
        seen.append(request)
        progress.prompt_tokens, progress.model_load_ms = 3, 0.001
        for word in ("", "Hello", "", " world"):
            progress.completion_tokens += 1
            yield word
        progress.finish_reason = FinishReason.LENGTH
        progress.extra["truncated_messages"] = 2

    provider.script = script
    task = run(new_task(temperature=0.25, context_overflow="error"))
    assert task.status == "completed"
    assert task.result == {
        "text": "Hello world",
        "finish_reason": "length",
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "cached_tokens": 0,
        },
        "model": "echo",
        "parsed": None,
        "extra": {"truncated_messages": 2},
    }
    assert task.model_load_ms == 0.001
    assert task.ttft_ms is not None
    assert task.inference_ms is not None
    [request] = seen
    assert request.messages == [{"role": "user", "content": "one two three"}]
    assert (request.params["temperature"], request.context_overflow) == (0.25, "error")
    entries = [entry for _, entry in client().xrange(stream_key(task.pk))]
    assert [e.get("text") for e in entries] == ["Hello", " world"]


def test_answer_without_text_is_an_answer(new_task: NewTask, provider: ScriptedProvider) -> None:
    nothing: list[str] = []
    provider.script = lambda request, progress: (text for text in nothing)
    task = run(new_task())
    assert task.status == "completed"
    assert task.result is not None
    assert (task.result["text"], task.result["finish_reason"]) == ("", "stop")
    assert task.ttft_ms is None


def test_database_that_is_away_at_first_is_no_failure_of_the_task(
    new_task: NewTask, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(lease: object) -> None:
        raise OperationalError("gone")

    task = new_task()
    with monkeypatch.context() as broken:
        broken.setattr(cloud_session, "provider_for", fail)
        assert run(task).status == "processing"
    expire(task)
    sweep.sweep()
    assert fresh(task).status == "pending"


def test_timeout_keeps_the_partial_text(new_task: NewTask, provider: ScriptedProvider) -> None:
    def script(request: GenerationRequest, progress: Progress) -> Generator[str, None, None]:
        yield "partial"
        while True:
            yield ""

    provider.script = script
    task = new_task()
    task.request["timeout_seconds"] = 0.05
    task.save(update_fields=["request"])
    task = run(task)
    assert (task.status, task.error_code) == ("failed", "timeout")
    assert task.result is not None
    assert (task.result["text"], task.result["finish_reason"]) == ("partial", "timeout")
    assert provider.is_closed


def test_cancel_keeps_the_partial_text(new_task: NewTask, provider: ScriptedProvider) -> None:
    task = new_task()

    def script(request: GenerationRequest, progress: Progress) -> Generator[str, None, None]:
        yield "partial"
        finish.cancel(task)
        while True:
            yield ""

    provider.script = script
    row = run(task)
    assert (row.status, row.error, row.error_code) == ("cancelled", None, None)
    assert row.result is not None
    assert (row.result["text"], row.result["finish_reason"]) == ("partial", "cancelled")
    assert provider.is_closed
    assert outcomes(task) == ["cancelled"]


@pytest.mark.parametrize("text", ["", "partial"])
def test_failure_of_the_provider_is_told(
    new_task: NewTask, provider: ScriptedProvider, text: str
) -> None:
    def script(request: GenerationRequest, progress: Progress) -> Generator[str, None, None]:
        yield text
        raise InferenceError("Set the key.", ErrorCode.PROVIDER_ERROR)

    provider.script = script
    task = run(new_task())
    assert (task.status, task.error) == ("failed", "Set the key.")
    assert task.error_code == "provider_error"
    if text:
        assert task.result is not None
        assert (task.result["text"], task.result["finish_reason"]) == ("partial", "error")
    else:
        assert task.result is None


def test_unexpected_error_leaks_nothing(
    new_task: NewTask, provider: ScriptedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    def script(request: GenerationRequest, progress: Progress) -> Generator[str, None, None]:
        yield "partial"
        raise KeyError("sk-secret")

    provider.script = script
    task = run(new_task())
    assert (task.status, task.error_code) == ("failed", "internal_error")
    assert task.error is not None
    assert "secret" not in task.error
    assert task.result is not None
    assert task.result["text"] == "partial"
    assert task.pk in caplog.text  # the log has the reason


def test_lost_lease_leaves_no_trace(new_task: NewTask, provider: ScriptedProvider) -> None:
    task = new_task()

    def script(request: GenerationRequest, progress: Progress) -> Generator[str, None, None]:
        yield "of the lost"
        expire(task)
        sweep.sweep()
        while True:
            yield ""

    provider.script = script
    row = run(task)
    assert (row.status, row.result, row.attempt) == ("pending", None, 1)
    assert provider.is_closed
    assert outcomes(task) == ["lost"]


def test_model_deleted_meanwhile_is_named(new_task: NewTask, echo: RegisteredModel) -> None:
    task = new_task()
    echo.delete()
    task = run(task)
    assert (task.status, task.error_code) == ("failed", "model_not_found")
    assert task.error is not None
    assert "echo" in task.error


@pytest.mark.parametrize("kind", ["local", "embedding"])
def test_model_registered_anew_as_another_kind_is_a_failure(
    new_task: NewTask, echo: RegisteredModel, kind: str
) -> None:
    task = new_task()
    RegisteredModel.objects.filter(pk=echo.pk).update(provider=kind)
    task = run(task)
    assert (task.status, task.error_code) == ("failed", "invalid_request")
    assert task.error is not None
    assert "another kind" in task.error


def test_flags_are_read_between_deltas(new_task: NewTask, provider: ScriptedProvider) -> None:
    lease: Lease = claimed(new_task())
    said: list[str] = []

    def script(request: GenerationRequest, progress: Progress) -> Generator[str, None, None]:
        for word in ("one", "two", "three"):
            said.append(word)
            lease.cancel_requested = word == "two"
            yield word

    provider.script = script
    execute(lease)
    assert said == ["one", "two"]
    wait_until(lambda: fresh(lease.task).status == "cancelled")


def test_progress_is_published_at_most_ten_times_a_second(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[LoggedEvent] = []
    now = 0.0

    def put(event: LoggedEvent, *, is_logged: bool, once: str = "") -> None:
        told.append(event)

    monkeypatch.setattr(publisher, "put", put)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    attempt = Attempt(claimed(new_task()))
    for step in range(400):
        now += 0.02
        attempt.progress.completion_tokens = min(step, 200)
        attempt.take("ab " if 0 < step <= 200 else "")
        attempt.publish_progress_if_due()
    attempt.complete()

    previews = [event.data for event in told if event.type == "task.progress"]
    assert 35 <= len(previews) <= 41  # 200 tokens in 4 s, then 4 s of nothing new
    for data in previews:
        assert data["partial_text"] == "ab " * data["tokens_generated"]
