"""Traces as a Langfuse server receives them from the real SDK; tasks never wait for them."""

import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from datetime import datetime
from typing import Any

import pytest
from django.conf import settings as django_settings
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from pytest_django import Settings
from rest_framework.test import APIClient

from conversations.models import Conversation
from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import finish, sweep
from inference.models import GenerationTask, RegisteredModel
from inference.providers.base import GenerationRequest, Progress, StartOver
from monitoring import tracing
from monitoring.redis import outbox
from monitoring.redis.per_process import PerProcess
from monitoring.tracing import Generation, Level, recorder
from tests import otlp_server
from tests.conftest import wait_until
from tests.inference.execution.cloud_sessions import execute
from tests.inference.execution.test_attempt import ScriptedProvider, provider  # noqa: F401 (a fixture)
from tests.inference.lifecycle.test_lifecycle import claimed, expire, fresh, lose
from tests.otlp_server import OtlpServer, Span, metadata

NewTask = Callable[..., GenerationTask]
Deltas = Generator[str | StartOver, None, None]
DOWN = InferenceError("The provider is down.", ErrorCode.PROVIDER_UNAVAILABLE, retryable=True)
OBSERVATION = "langfuse.observation."


make_spans: Callable[[], Any] = recorder._spans.__wrapped__  # type: ignore[attr-defined]


def set_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Keys, and a process that has sent nothing yet; other ones each time, as the SDK wants."""
    keys = f"pk-lf-{uuid.uuid4()}", f"sk-lf-{uuid.uuid4()}"
    settings.LANGFUSE_PUBLIC_KEY, settings.LANGFUSE_SECRET_KEY = keys
    monkeypatch.setattr(recorder, "_spans", PerProcess(make_spans))
    return keys


@pytest.fixture
def langfuse(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpServer]:
    """A server that this process sends its traces to."""
    with otlp_server.running(*set_up(settings, monkeypatch)) as server:
        settings.LANGFUSE_HOST = server.url
        yield server


def generation(text: str = "a text", **metadata_fields: object) -> Generation:
    now = time.time_ns()
    return Generation(
        trace_id=uuid.uuid4().hex,
        attempt=1,
        model="a model",
        parameters={},
        messages=[{"role": "user", "content": text}],
        output=None,
        usage=None,
        started_ns=now - 10**9,
        first_token_ns=None,
        ended_ns=now,
        level=Level.DEFAULT,
        status_message=None,
        metadata={"attempt": 1, **metadata_fields},
        session_id=None,
        user_id=None,
        tags=[],
        trace_metadata={},
    )


def run(task: GenerationTask) -> GenerationTask:
    execute(claimed(task))
    return fresh(task)


def received(server: OtlpServer, task: GenerationTask, num_spans: int = 1) -> list[Span]:
    """The generations of the task, in order, once they are there."""
    assert task.trace_id is not None
    tracing.flush(20)
    spans = server.of_trace(task.trace_id)
    assert len(spans) == num_spans
    return spans


def attribute(span: Span, name: str) -> Any:
    return span["attributes"].get(OBSERVATION + name)


def level_and_message(span: Span) -> tuple[str, str | None]:
    return attribute(span, "level"), attribute(span, "status_message")


# Which tasks are traced


def test_trace_id_is_what_the_sdk_makes_of_the_task_id(langfuse: OtlpServer) -> None:
    from langfuse import Langfuse

    assert tracing.trace_id_of("task_1") == Langfuse.create_trace_id(seed="task_1")


def test_task_shows_its_trace_id(api: APIClient, echo: object, langfuse: OtlpServer) -> None:
    body = api.post("/api/v1/tasks", {"model": "echo", "prompt": "a"}, format="json").json()
    assert body["trace_id"] == tracing.trace_id_of(body["task_id"])
    assert len(body["trace_id"]) == 32


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("missing", ["LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"])
def test_without_keys_nothing_is_traced(
    new_task: NewTask, langfuse: OtlpServer, settings: Settings, missing: str
) -> None:
    setattr(settings, missing, "")
    task = run(new_task())
    assert (task.status, task.trace_id) == ("completed", None)
    tracing.record(generation())
    tracing.flush()
    assert not recorder._spans.is_made


def test_sample_rate_decides_as_the_sampler_of_opentelemetry_does(
    langfuse: OtlpServer, settings: Settings
) -> None:
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    task_ids = [f"task_{i}" for i in range(200)]
    trace_ids = [str(tracing.trace_id_of(task_id)) for task_id in task_ids]
    sample = TraceIdRatioBased(0.25).should_sample
    expected = [
        trace_id
        if sample(None, int(trace_id, 16), "").decision == Decision.RECORD_AND_SAMPLE
        else None
        for trace_id in trace_ids
    ]
    settings.LANGFUSE_SAMPLE_RATE = 0.25
    assert [tracing.trace_id_of(task_id) for task_id in task_ids] == expected
    assert 0 < expected.count(None) < 200


@pytest.mark.django_db(transaction=True)
def test_task_that_is_not_sampled_sends_nothing(
    new_task: NewTask, langfuse: OtlpServer, settings: Settings
) -> None:
    settings.LANGFUSE_SAMPLE_RATE = 0
    assert run(new_task()).trace_id is None
    tracing.flush(20)
    assert not langfuse.num_posts


def test_web_process_knows_trace_ids_without_the_sdk() -> None:
    code = (
        "import sys, sopllm.asgi, sopllm.urls, celery_app\n"
        "from monitoring import tracing\n"
        "assert tracing.trace_id_of('task_1')\n"
        "print([name for name in ('langfuse', 'litellm') if name in sys.modules])"
    )
    keys = {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk"}
    process = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | keys, capture_output=True, check=True
    )
    assert process.stdout.decode().strip() == "[]"


# What a trace tells


@pytest.mark.django_db(transaction=True)
def test_completed_task_is_a_whole_generation(
    new_task: NewTask,
    langfuse: OtlpServer,
    provider: ScriptedProvider,  # noqa: F811
) -> None:
    def script(request: GenerationRequest, progress: Progress) -> Deltas:
        progress.prompt_tokens, progress.cached_tokens, progress.model_load_ms = 7, 5, 0.25
        yield ""
        time.sleep(0.02)  # the first token is later than the start
        for word in ("Hello", " world"):
            progress.completion_tokens += 1
            yield word
        progress.finish_reason = FinishReason.LENGTH
        progress.extra["truncated_messages"] = 2

    provider.script = script  # type: ignore[assignment]
    submitted = new_task(
        owner="app-1",
        temperature=0.25,
        stop=["END"],
        priority=5,
        metadata={"campaign": "spring", "ids": [1, 2], "number": "12"},
    )
    before = time.time_ns()
    task = run(submitted)
    [span] = received(langfuse, task)
    assert (span["name"], span["parent_id"], span["scope"]) == ("generation", "", "langfuse-sdk")
    assert attribute(span, "type") == "generation"
    assert attribute(span, "model.name") == "echo"
    params = json.loads(attribute(span, "model.parameters"))
    assert params == {"temperature": 0.25, "stop_sequences": ["END"], "max_tokens": 512}
    assert json.loads(attribute(span, "input")) == [{"role": "user", "content": "one two three"}]
    assert attribute(span, "output") == "Hello world"
    usage = {"input": 2, "input_cached_tokens": 5, "output": 2, "total": 9}
    assert json.loads(attribute(span, "usage_details")) == usage
    assert level_and_message(span) == ("DEFAULT", None)

    first_token = datetime.fromisoformat(json.loads(attribute(span, "completion_start_time")))
    assert before <= span["start_ns"] < first_token.timestamp() * 1e9 <= span["end_ns"]
    assert span["end_ns"] <= time.time_ns()

    assert span["attributes"]["langfuse.trace.name"] == "task"
    assert span["attributes"]["langfuse.trace.tags"] == ["api"]
    assert span["attributes"]["user.id"] == "app-1"
    assert "session.id" not in span["attributes"]
    assert span["attributes"]["langfuse.environment"] == "local"
    assert span["attributes"]["langfuse.release"] == django_settings.VERSION
    told = metadata(span, "trace")
    assert told == {"campaign": "spring", "ids": [1, 2], "number": "12"}

    facts = metadata(span)
    times = {name: facts.pop(name) for name in ("queue_wait_ms", "ttft_ms", "inference_ms")}
    assert times["ttft_ms"] >= 20
    assert times["inference_ms"] >= times["ttft_ms"] - 0.25
    assert times["queue_wait_ms"] == task.queue_wait_ms
    assert facts == {
        "task_id": task.pk,
        "attempt": 1,
        "outcome": "completed",
        "worker": task.worker,
        "queue": "api",
        "priority": 5,
        "requested_model": "echo",
        "is_fallback": False,
        "model_load_ms": 0.25,
        "finish_reason": "length",
        "context_overflow": "truncate",
        "timeout_seconds": 600,
        "extra": {"truncated_messages": 2},
    }


@pytest.mark.django_db(transaction=True)
def test_conversation_is_the_session_and_its_history_the_input(
    new_task: NewTask, langfuse: OtlpServer
) -> None:
    conversation = Conversation.objects.create(owner="local", system_prompt="Be brief.")
    first = run(new_task(conversation_id=conversation.pk, prompt="One?"))
    second = run(new_task(conversation_id=conversation.pk, prompt="Two?"))
    [earlier], [span] = received(langfuse, first), received(langfuse, second)
    assert span["attributes"]["session.id"] == conversation.pk
    assert "user.id" not in span["attributes"]
    system = {"role": "system", "content": "Be brief."}
    assert json.loads(attribute(earlier, "input")) == [system, {"role": "user", "content": "One?"}]
    assert json.loads(attribute(span, "input")) == [
        system,
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "One?"},
        {"role": "user", "content": "Two?"},
    ]


@pytest.mark.django_db(transaction=True)
def test_failed_task_is_an_error_with_its_reason_and_text(
    new_task: NewTask,
    langfuse: OtlpServer,
    provider: ScriptedProvider,  # noqa: F811
) -> None:
    def script(request: GenerationRequest, progress: Progress) -> Deltas:
        yield "partial"
        raise DOWN

    provider.script = script  # type: ignore[assignment]
    [span] = received(langfuse, run(new_task()))
    assert level_and_message(span) == ("ERROR", "The provider is down.")
    assert span["status"] == (2, "The provider is down.")
    assert attribute(span, "output") == "partial"
    facts = metadata(span)
    assert (facts["outcome"], facts["error_code"]) == ("failed", "provider_unavailable")
    assert facts["finish_reason"] == "error"


@pytest.mark.django_db(transaction=True)
def test_failure_before_the_first_word_is_told_with_the_question(
    new_task: NewTask,
    langfuse: OtlpServer,
    provider: ScriptedProvider,  # noqa: F811
) -> None:
    def script(request: GenerationRequest, progress: Progress) -> Deltas:
        yield ""
        raise DOWN

    provider.script = script  # type: ignore[assignment]
    [span] = received(langfuse, run(new_task()))
    assert json.loads(attribute(span, "input")) == [{"role": "user", "content": "one two three"}]
    for name in ("output", "usage_details", "completion_start_time"):
        assert attribute(span, name) is None
    assert "ttft_ms" not in metadata(span)


@pytest.mark.django_db(transaction=True)
def test_cancelled_task_is_a_warning_with_what_it_had_said(
    new_task: NewTask,
    langfuse: OtlpServer,
    provider: ScriptedProvider,  # noqa: F811
) -> None:
    task = new_task()

    def script(request: GenerationRequest, progress: Progress) -> Deltas:
        yield "partial"
        finish.cancel(task)
        while True:
            yield ""

    provider.script = script  # type: ignore[assignment]
    [span] = received(langfuse, run(task))
    assert level_and_message(span) == ("WARNING", "Cancelled.")
    assert attribute(span, "output") == "partial"
    facts = metadata(span)
    assert (facts["outcome"], facts["finish_reason"]) == ("cancelled", "cancelled")


@pytest.mark.django_db(transaction=True)
def test_answer_that_starts_over_is_two_generations_of_one_trace(
    new_task: NewTask,
    langfuse: OtlpServer,
    provider: ScriptedProvider,  # noqa: F811
) -> None:
    def script(request: GenerationRequest, progress: Progress) -> Deltas:
        yield "void"
        yield StartOver(DOWN)
        yield "valid"

    provider.script = script  # type: ignore[assignment]
    task = run(new_task())
    assert (task.status, task.attempt) == ("completed", 2)
    first, second = received(langfuse, task, 2)
    assert [metadata(span)["attempt"] for span in (first, second)] == [1, 2]
    assert level_and_message(first) == ("ERROR", "The provider is down.")
    assert level_and_message(second) == ("DEFAULT", None)
    assert [attribute(span, "output") for span in (first, second)] == ["void", "valid"]
    assert attribute(first, "input") == attribute(second, "input")
    assert first["end_ns"] <= second["start_ns"]


@pytest.mark.django_db(transaction=True)
def test_fallback_is_the_next_generation_of_the_trace(
    new_task: NewTask,
    langfuse: OtlpServer,
    provider: ScriptedProvider,  # noqa: F811
) -> None:
    config = {"generation_params": {"max_tokens": 7}}
    RegisteredModel.objects.create(name="second", provider="echo", config=config)
    failures = [DOWN]

    def script(request: GenerationRequest, progress: Progress) -> Deltas:
        yield ""
        if failures:
            raise failures.pop()
        yield "answer"

    provider.script = script  # type: ignore[assignment]
    task = new_task(fallback_models=["second"])
    assert run(task).status == "pending"
    assert run(task).status == "completed"
    first, second = received(langfuse, task, 2)
    assert [attribute(span, "model.name") for span in (first, second)] == ["echo", "second"]
    sizes = [
        json.loads(attribute(span, "model.parameters"))["max_tokens"] for span in (first, second)
    ]
    assert sizes == [512, 7]
    assert [metadata(span)["is_fallback"] for span in (first, second)] == [False, True]
    assert {metadata(span)["requested_model"] for span in (first, second)} == {"echo"}
    assert second["attributes"]["langfuse.trace.tags"] == ["api", "fallback"]
    assert [level_and_message(span)[0] for span in (first, second)] == ["ERROR", "DEFAULT"]


@pytest.mark.django_db(transaction=True)
def test_lost_attempt_is_told_by_whoever_takes_the_task_back(
    new_task: NewTask, langfuse: OtlpServer
) -> None:
    task = new_task(metadata={"campaign": "spring"})
    lease = claimed(task)
    lose(task)
    [span] = received(langfuse, task)
    message = f"The worker {lease.task.worker} was lost while it ran this attempt."
    assert level_and_message(span) == ("ERROR", message)
    assert json.loads(attribute(span, "input")) == [{"role": "user", "content": "one two three"}]
    assert (attribute(span, "output"), attribute(span, "model.name")) == (None, "echo")
    facts = metadata(span)
    assert (facts["outcome"], facts["error_code"]) == ("lost", "worker_lost")
    assert facts["worker"] == lease.task.worker
    assert metadata(span, "trace") == {"campaign": "spring"}
    assert 0 < span["start_ns"] <= span["end_ns"]
    run(task)
    assert [metadata(each)["outcome"] for each in received(langfuse, task, 2)] == [
        "lost",
        "completed",
    ]


@pytest.mark.django_db(transaction=True)
def test_attempt_that_lost_its_lease_says_nothing_itself(
    new_task: NewTask,
    langfuse: OtlpServer,
    provider: ScriptedProvider,  # noqa: F811
) -> None:
    task = new_task()

    def script(request: GenerationRequest, progress: Progress) -> Deltas:
        expire(task)
        sweep.sweep()
        yield "a late answer"

    provider.script = script  # type: ignore[assignment]
    assert run(task).status == "pending"
    [span] = received(langfuse, task)
    assert metadata(span)["outcome"] == "lost"


@pytest.mark.django_db(transaction=True)
def test_what_looks_like_a_key_is_not_sent(
    new_task: NewTask,
    langfuse: OtlpServer,
    provider: ScriptedProvider,  # noqa: F811
) -> None:
    secret = "sk-proj-abcdefghijklmnop"

    def script(request: GenerationRequest, progress: Progress) -> Deltas:
        progress.extra["answered_by"] = f"https://user:{secret}@example.com"
        yield f"It is {secret}."
        raise InferenceError(f"Bearer {secret} was refused.", ErrorCode.AUTHENTICATION_FAILED)

    provider.script = script  # type: ignore[assignment]
    task = new_task(prompt=f"My key: {secret}", stop=[secret], metadata={"note": [secret]})
    [span] = received(langfuse, run(task))
    assert attribute(span, "output") == "It is ***."
    [body] = langfuse.bodies
    for hidden in (secret, django_settings.LANGFUSE_SECRET_KEY):
        assert hidden.encode() not in body


def test_metadata_of_many_names_is_kept_whole(langfuse: OtlpServer) -> None:
    names = {f"name_{i}": i for i in range(500)}
    tracing.record(generation("a text", **names))
    tracing.flush(20)
    [span] = langfuse.spans
    assert names.items() <= metadata(span).items()
    assert attribute(span, "model.name") == "a model"


def test_operators_own_tracing_is_left_alone(
    langfuse: OtlpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry import trace

    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    headers = "authorization=Bearer%20of-another-server,x-key=of-another-server"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    before = trace.get_tracer_provider()
    tracing.record(generation())
    tracing.flush(20)
    assert len(langfuse.spans) == 1
    assert "of-another-server" not in str(langfuse.headers)
    assert trace.get_tracer_provider() is before
    assert os.environ["OTEL_EXPORTER_OTLP_HEADERS"] == headers


# When Langfuse is away


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """All that was logged, by whomever: libraries too."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.fixture
def warns_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of an earlier test keeps those of this one back."""
    for each in logging.getLogger(trace_exporter.__name__).filters:
        monkeypatch.setattr(each, "_passed_at", float("-inf"))


@pytest.mark.usefixtures("warns_anew")
@pytest.mark.parametrize("status", [401, 404, 413, 500, 503])
def test_server_that_takes_no_traces_costs_one_warning(
    langfuse: OtlpServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    langfuse.status = status
    for _ in range(1 if status == 503 else 3):  # the SDK tries for five seconds
        tracing.record(generation("lost"))
        tracing.flush(20)
    [message] = warnings(caplog)
    assert message.startswith("Traces may be lost: ")
    assert str(status) in message or "Service Unavailable" in message
    langfuse.status = 200
    tracing.record(generation("sent"))
    tracing.flush(20)
    texts = [json.loads(attribute(span, "input"))[0]["content"] for span in langfuse.spans]
    assert texts[-1] == "sent"
    assert len(warnings(caplog)) == 1
    assert all(record.exc_info is None for record in caplog.records)
    for key in (django_settings.LANGFUSE_PUBLIC_KEY, django_settings.LANGFUSE_SECRET_KEY):
        assert key not in caplog.text


@pytest.mark.usefixtures("warns_anew")
def test_traces_are_sent_again_once_a_server_is_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys = set_up(settings, monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings.LANGFUSE_HOST = f"http://127.0.0.1:{port}"
    tracing.record(generation("lost"))
    tracing.flush(20)
    assert "Connection refused" in caplog.text
    assert "Traceback" not in caplog.text
    with otlp_server.running(*keys, port) as server:
        tracing.record(generation("sent"))
        tracing.flush(20)
        assert len(server.spans) == 1


def test_memory_is_bounded_while_langfuse_hangs(langfuse: OtlpServer) -> None:
    langfuse.may_answer.clear()
    for _ in range(3000):
        tracing.record(generation())
    outbox.flush(20)
    langfuse.may_answer.set()
    tracing.flush(60)
    assert 2000 < len(langfuse.spans) < 2200


@pytest.mark.django_db(transaction=True)
def test_hanging_server_holds_up_neither_tasks_nor_the_stop(
    new_task: NewTask, langfuse: OtlpServer
) -> None:
    langfuse.may_answer.clear()
    tasks = [new_task() for _ in range(5)]
    run(tasks[0])
    wait_until(lambda: langfuse.num_posts)
    assert [run(task).status for task in tasks[1:]] == ["completed"] * 4
    tracing.flush(0.1)
    assert not langfuse.spans
    langfuse.may_answer.set()
    wait_until(lambda: len({span["trace_id"] for span in langfuse.spans}) == 5)


def test_forked_child_sends_its_own_while_its_parent_goes_on(langfuse: OtlpServer) -> None:
    tracing.record(generation(sent_by="parent"))
    wait_until(lambda: langfuse.num_posts)
    tracing.record(generation(sent_by="parent, later"))
    pid = os.fork()
    if not pid:
        tracing.record(generation(sent_by="child"))
        tracing.flush(20)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    tracing.flush(20)
    senders = [metadata(span)["sent_by"] for span in langfuse.spans]
    assert sorted(senders) == ["child", "parent", "parent, later"]


def test_fork_while_the_sdk_is_imported_holds_up_no_child(
    langfuse: OtlpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_importing = threading.Event()

    def import_slowly() -> Any:
        is_importing.set()
        time.sleep(0.3)
        return make_spans()

    monkeypatch.setattr(recorder, "_spans", PerProcess(import_slowly))
    tracing.record(generation(sent_by="parent"))
    assert is_importing.wait(20)
    pid = os.fork()
    if not pid:
        tracing.record(generation(sent_by="child"))
        tracing.flush(20)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    tracing.flush(20)
    senders = [metadata(span)["sent_by"] for span in langfuse.spans]
    assert sorted(senders) == ["child", "parent"]


def test_generation_that_no_span_can_be_made_of_costs_its_batch_alone(
    langfuse: OtlpServer, caplog: pytest.LogCaptureFixture
) -> None:
    broken = dataclasses.replace(generation(), trace_id="no number")
    tracing.record(broken)
    tracing.flush(20)
    assert "Traces: a batch of 1 was lost" in caplog.text
    tracing.record(generation())
    tracing.flush(20)
    assert len(langfuse.spans) == 1
