"""The whole service and a stand-in for Langfuse, which goes away in the end."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import faults
from benchmarks.running_service import COUNTING, SMOLLM2, RunningService, wait_for
from tests.cloud_server import CloudServer, Fault
from tests.otlp_server import OtlpServer, Span, metadata
from tests.system.conftest import register_cloud

OBSERVATION = "langfuse.observation."


@pytest.fixture(scope="module")
def cloud(running_service: RunningService) -> Iterator[CloudServer]:
    """A cloud, and the model `cloud` that asks it."""
    with CloudServer(key=None) as server:
        register_cloud(running_service, "cloud", server, api_key="key", max_retries=0)
        yield server
        running_service.http.delete("/models/cloud").raise_for_status()


def trace_of(langfuse: OtlpServer, task: dict[str, Any], num_spans: int = 1) -> list[Span]:
    """The generations of a task that has just ended."""
    return wait_for(
        lambda: spans if len(spans := langfuse.of_trace(task["trace_id"])) == num_spans else None
    )


def observation(span: Span, name: str) -> Any:
    return span["attributes"].get(OBSERVATION + name)


def assert_whole(span: Span, task: dict[str, Any]) -> None:
    """Every field that a trace has to have, of a task that was answered by this generation."""
    usage = task["result"]["usage"]
    sent = json.loads(observation(span, "usage_details"))
    assert (span["name"], observation(span, "type")) == ("generation", "generation")
    assert observation(span, "model.name") == task["result"]["model"]
    assert json.loads(observation(span, "model.parameters"))["temperature"] == 0
    assert json.loads(observation(span, "input"))[-1]["role"] == "user"
    assert observation(span, "output") == task["result"]["text"]
    assert sent["input"] + sent["input_cached_tokens"] == usage["prompt_tokens"] > 0
    assert sent["output"] == usage["completion_tokens"] > 0
    assert observation(span, "level") == "DEFAULT"
    assert observation(span, "completion_start_time")
    assert span["start_ns"] < span["end_ns"]
    assert metadata(span, "trace") == task["metadata"]
    facts = metadata(span)
    assert facts["task_id"] == task["task_id"]
    assert facts["attempt"] == task["attempt"]
    assert facts["finish_reason"] == task["result"]["finish_reason"]
    assert all(facts[name] > 0 for name in ("queue_wait_ms", "ttft_ms", "inference_ms"))
    assert span["attributes"]["langfuse.trace.name"] == "task"


def test_local_task_is_traced(service: RunningService, langfuse: OtlpServer) -> None:
    conversation = service.http.post("/conversations", json={"system_prompt": "Be brief."})
    session = conversation.raise_for_status().json()["conversation_id"]
    service.http.post("/models/unload?wait=30", json={"model": SMOLLM2}).raise_for_status()
    fields = {"conversation_id": session, "metadata": {"campaign": "spring"}}
    first = service.ended(service.submit(**COUNTING, max_tokens=8, **fields), 60)
    second = service.ended(service.submit("And 4?", temperature=0, max_tokens=8, **fields), 60)
    spans = [trace_of(langfuse, task)[0] for task in (first, second)]
    for span, task in zip(spans, (first, second), strict=True):
        assert_whole(span, task)
        assert span["attributes"]["session.id"] == session
        assert span["attributes"]["langfuse.trace.tags"] == ["gpu"]
    assert metadata(spans[0])["model_load_ms"] > 0
    assert json.loads(observation(spans[1], "usage_details"))["input_cached_tokens"] > 0
    roles = [each["role"] for each in json.loads(observation(spans[1], "input"))]
    assert roles == ["system", "user", "assistant", "user"]


def test_cloud_task_is_traced(
    service: RunningService, cloud: CloudServer, langfuse: OtlpServer
) -> None:
    task = service.ended(service.submit("one two three", "cloud", temperature=0))
    [span] = trace_of(langfuse, task)
    assert_whole(span, task)
    assert observation(span, "output") == "one two three"
    assert span["attributes"]["langfuse.trace.tags"] == ["api"]


def test_cloud_that_fails_and_the_local_model_are_one_trace(
    service: RunningService, cloud: CloudServer, langfuse: OtlpServer
) -> None:
    cloud.faults.append(Fault.UNAUTHORIZED)
    fields = {"temperature": 0, "max_tokens": 4, "fallback_models": [SMOLLM2]}
    task = service.ended(service.submit("Hello", "cloud", **fields), 60)
    failed, answered = trace_of(langfuse, task, 2)
    assert_whole(answered, task)
    assert answered["attributes"]["langfuse.trace.tags"] == ["gpu", "fallback"]
    assert (observation(failed, "model.name"), observation(failed, "level")) == ("cloud", "ERROR")
    assert metadata(failed)["error_code"] == "authentication_failed"
    assert failed["end_ns"] <= answered["end_ns"]


def test_killed_worker_leaves_a_lost_generation(
    service: RunningService, langfuse: OtlpServer
) -> None:
    task_id = service.submit(**COUNTING, max_tokens=100)
    service.generating(task_id)
    faults.kill_gpu_child(service)
    lost, answered = trace_of(langfuse, service.ended(task_id, 90), 2)
    assert [metadata(span)["outcome"] for span in (lost, answered)] == ["lost", "completed"]
    assert observation(lost, "level") == "ERROR"
    assert lost["start_ns"] < lost["end_ns"] <= answered["end_ns"]


def test_tasks_do_not_wait_for_a_server_that_is_away(
    service: RunningService, langfuse: OtlpServer
) -> None:
    api_log = service.var_dir / "log" / "api-worker.log"
    num_lines_before = len(api_log.read_text().splitlines())

    def log() -> str:
        return "\n".join(api_log.read_text().splitlines()[num_lines_before:])

    langfuse.status = 503
    try:
        task_ids = [service.submit("one two", "echo") for _ in range(20)]
        tasks = [service.ended(task_id) for task_id in task_ids]
        assert {task["status"] for task in tasks} == {"completed"}
        health = service.http.get("/monitor/health").json()
        assert (health["status"], health["components"]["langfuse"]["status"]) == (
            "degraded",
            "down",
        )
        wait_for(lambda: "Traces may be lost" in log())
    finally:
        langfuse.status = 200
    trace_of(langfuse, service.ended(service.submit("one two", "echo")))
    assert log().count("Traces may be lost") == 1
    assert "Traceback" not in log()
