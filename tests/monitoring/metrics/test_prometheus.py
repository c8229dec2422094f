"""GET /metrics: what Prometheus reads."""

from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from rest_framework.test import APIClient

from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError
from inference.execution import attempt, cloud_session
from inference.lifecycle import finish
from inference.lifecycle.finish import Timings
from inference.models import GenerationTask, RegisteredModel
from inference.providers.base import GenerationRequest, Progress
from monitoring.hardware import gpu
from monitoring.metrics import counters
from monitoring.metrics.counters import BUCKETS, ITL
from monitoring.redis import outbox
from monitoring.redis.client import client
from tests.conftest import Valkey, wait_until, wait_until_enqueued
from tests.inference.execution.cloud_sessions import execute
from tests.inference.execution.test_attempt import ScriptedProvider
from tests.inference.lifecycle.test_lifecycle import answer, claimed, lose

NewTask = Callable[..., GenerationTask]
# Committed rows, which the lease renewer's thread reads too.
pytestmark = pytest.mark.django_db(transaction=True)

TIMINGS = Timings(model_load_ms=2000.0, ttft_ms=2500.0, inference_ms=1500.0)


@pytest.fixture
def provider(echo: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> ScriptedProvider:
    scripted = ScriptedProvider(echo)
    monkeypatch.setattr(cloud_session, "provider_for", lambda _: scripted)
    return scripted


def samples(api: APIClient) -> list[Sample]:
    outbox.flush()
    client_answer = api.get("/metrics")
    assert client_answer.status_code == 200
    families = text_string_to_metric_families(client_answer.content.decode())
    return [sample for family in families for sample in family.samples]


def value(found: list[Sample], name: str, **labels: str) -> float | None:
    [*values] = [s.value for s in found if s.name == f"sopllm_{name}" and s.labels == labels]
    assert len(values) <= 1
    return values[0] if values else None


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
def test_text_is_of_the_format_that_prometheus_reads(
    api: APIClient, echo: RegisteredModel, path: str
) -> None:
    response = api.get(path)
    assert response.status_code == 200
    assert response["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {f.name: f for f in text_string_to_metric_families(response.content.decode())}
    assert all(name.startswith("sopllm_") for name in families)
    assert all(family.documentation for family in families.values())
    types = {name.removeprefix("sopllm_"): family.type for name, family in families.items()}
    assert types == {
        "request_queue_time_seconds": "histogram",
        "kept_cache_hits": "counter",
        "kept_cache_hit_tokens": "counter",
        "kept_cache_written_bytes": "counter",
        "time_to_first_token_seconds": "histogram",
        "inter_token_latency_seconds": "histogram",
        "time_per_output_token_seconds": "histogram",
        "e2e_request_latency_seconds": "histogram",
        "prompt_tokens": "counter",
        "generation_tokens": "counter",
        "prefix_cache_queries": "counter",
        "prefix_cache_hits": "counter",
        "spec_decode_num_draft_tokens": "counter",
        "spec_decode_num_accepted_tokens": "counter",
        "request_success": "counter",
        "request_failure": "counter",
        "request_cancelled": "counter",
        "num_requests_running": "gauge",
        "num_requests_waiting": "gauge",
        "oldest_request_waiting_seconds": "gauge",
        "workers": "gauge",
        "model_loaded": "gauge",
        "circuit_open": "gauge",
        "endpoint_healthy": "gauge",
        "endpoint_requests_running": "gauge",
        "endpoint_concurrency_limit": "gauge",
        "endpoint_latency_seconds": "gauge",
        "gpu_memory_used_bytes": "gauge",
        "gpu_memory_total_bytes": "gauge",
        "gpu_utilization_ratio": "gauge",
    }


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        "text/plain;version=0.0.4",
        "text/html",
    ],
)
def test_scraper_may_accept_what_it_likes(api: APIClient, accept: str) -> None:
    response = api.get("/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")


def test_ended_task_is_counted(api: APIClient, new_task: NewTask) -> None:
    result = answer()
    result["usage"] |= {"prompt_tokens": 30, "completion_tokens": 11, "cached_tokens": 20}
    result["usage"] |= {"accepted_prediction_tokens": 6, "rejected_prediction_tokens": 3}
    lease = claimed(new_task())
    finish.complete(lease, result, TIMINGS)
    found = samples(api)
    assert value(found, "prompt_tokens_total", model="echo") == 30
    assert value(found, "generation_tokens_total", model="echo") == 11
    assert value(found, "prefix_cache_queries_total", model="echo") == 30
    assert value(found, "prefix_cache_hits_total", model="echo") == 20
    assert value(found, "spec_decode_num_draft_tokens_total", model="echo") == 9
    assert value(found, "spec_decode_num_accepted_tokens_total", model="echo") == 6
    success = {"model": "echo", "finished_reason": "stop"}
    assert value(found, "request_success_total", **success) == 1
    wait_seconds = (lease.task.queue_wait_ms or 0) / 1000
    for name, seconds in (
        ("request_queue_time_seconds", wait_seconds),
        ("time_to_first_token_seconds", 2.5),
        # The model's loading comes before the first token: a second is left for ten tokens.
        ("time_per_output_token_seconds", 0.1),
        ("e2e_request_latency_seconds", wait_seconds + 3.5),
    ):
        assert value(found, f"{name}_count", model="echo") == 1
        assert value(found, f"{name}_sum", model="echo") == pytest.approx(seconds)
    # A value that is a bucket's bound belongs to it.
    first = "time_to_first_token_seconds_bucket"
    assert value(found, first, model="echo", le="1.0") == 0
    assert value(found, first, model="echo", le="2.5") == 1


def test_failures_and_cancels_are_counted_apart(api: APIClient, new_task: NewTask) -> None:
    for code in (ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_ERROR, ErrorCode.TIMEOUT):
        failure = InferenceError("Do this next.", code)
        finish.fail(claimed(new_task()), failure, None, Timings())
    finish.cancel(new_task())
    found = samples(api)
    errors = {"provider_error": 2, "timeout": 1}
    for error_code, number in errors.items():
        labels = {"model": "echo", "error_code": error_code}
        assert value(found, "request_failure_total", **labels) == number
    assert value(found, "request_cancelled_total", model="echo") == 1
    assert not [sample for sample in found if sample.name == "sopllm_request_success_total"]
    assert value(found, "e2e_request_latency_seconds_count", model="echo") == 0
    assert value(found, "request_queue_time_seconds_count", model="echo") == 3


def test_task_without_second_token_has_no_time_between_tokens(
    api: APIClient, new_task: NewTask
) -> None:
    result = answer()
    result["usage"]["completion_tokens"] = 1
    finish.complete(claimed(new_task()), result, TIMINGS)
    assert value(samples(api), "time_per_output_token_seconds_count", model="echo") == 0


def test_times_between_pieces_of_text_are_counted(
    api: APIClient,
    new_task: NewTask,
    provider: ScriptedProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(attempt, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def script(request: GenerationRequest, progress: Progress) -> Generator[str, None, None]:
        for word, seconds in (("one", 9), (" two", 0.02), ("", 1), (" three", 1), (" four", 60)):
            clock.now += seconds
            yield word
        progress.finish_reason = FinishReason.STOP

    provider.script = script
    execute(claimed(new_task()))
    found = samples(api)
    assert value(found, f"{ITL}_count", model="echo") == 3
    assert value(found, f"{ITL}_sum", model="echo") == pytest.approx(62.02)
    assert value(found, f"{ITL}_bucket", model="echo", le="0.01") == 0
    assert value(found, f"{ITL}_bucket", model="echo", le="0.025") == 1
    assert value(found, f"{ITL}_bucket", model="echo", le="2.5") == 2
    assert value(found, "time_to_first_token_seconds_sum", model="echo") == pytest.approx(9)


def test_buckets_are_cumulative_and_end_with_the_count(
    api: APIClient, echo: RegisteredModel, valkey: Valkey
) -> None:
    seconds = [0.0, 0.01, 0.0100001, 0.3, 79.9, 80.0, 1e6]
    increments: counters.Increments = {}
    for gap in seconds:
        counters.observe(increments, "echo", ITL, gap)
    counters.count(increments)
    found = samples(api)
    buckets = {
        float(sample.labels["le"]): sample.value
        for sample in found
        if sample.name == f"sopllm_{ITL}_bucket"
    }
    assert list(buckets) == [*BUCKETS[ITL], float("inf")]
    assert buckets == {
        bound: sum(gap <= bound for gap in seconds) for bound in (*BUCKETS[ITL], float("inf"))
    }
    assert value(found, f"{ITL}_count", model="echo") == len(seconds)
    assert value(found, f"{ITL}_sum", model="echo") == pytest.approx(sum(seconds))


def test_counters_of_all_processes_and_batches_add_up(api: APIClient, new_task: NewTask) -> None:
    for _ in range(3):
        finish.complete(claimed(new_task()), answer(), TIMINGS)
        outbox.flush()
    assert value(samples(api), "prompt_tokens_total", model="echo") == 9


def test_model_without_tasks_has_counters_at_zero(api: APIClient, echo: RegisteredModel) -> None:
    found = samples(api)
    assert value(found, "prompt_tokens_total", model="echo") == 0
    assert value(found, "time_to_first_token_seconds_count", model="echo") == 0


def test_deleted_model_has_no_series(api: APIClient, new_task: NewTask) -> None:
    finish.complete(claimed(new_task()), answer(), TIMINGS)
    outbox.flush()
    RegisteredModel.objects.all().delete()
    assert not [sample for sample in samples(api) if "model" in sample.labels]


def test_queues_and_models_are_gauges(api: APIClient, new_task: NewTask) -> None:
    RegisteredModel.objects.create(name="held", provider="local", status="loaded")
    new_task()
    new_task()
    claimed(new_task())
    found = samples(api)
    assert value(found, "num_requests_waiting", queue="api") == 2
    assert value(found, "num_requests_running", queue="api") == 1
    assert value(found, "num_requests_waiting", queue="gpu") == 0
    assert value(found, "workers", queue="gpu") == 0
    assert value(found, "model_loaded", model="held") == 1
    assert value(found, "model_loaded", model="echo") == 0


def test_gpus_are_gauges_and_what_one_does_not_tell_is_left_out(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading: dict[str, Any] = {"node": "a", "used_mb": 3, "total_mb": 8, "utilization_percent": 25}
    silent = {"index": 1, "node": "b", "used_mb": None, "total_mb": 8, "utilization_percent": None}
    gpus = {"available": True, "gpus": [{"index": 0} | reading, silent]}
    monkeypatch.setattr(gpu, "stats", lambda: gpus)
    found = samples(api)
    assert value(found, "gpu_memory_used_bytes", node="a", gpu="0") == 3 * 1024 * 1024
    assert value(found, "gpu_memory_total_bytes", node="b", gpu="1") == 8 * 1024 * 1024
    assert value(found, "gpu_utilization_ratio", node="a", gpu="0") == 0.25
    assert value(found, "gpu_memory_used_bytes", node="b", gpu="1") is None


def test_database_is_told_without_redis(api: APIClient, new_task: NewTask, valkey: Valkey) -> None:
    new_task()
    wait_until_enqueued()
    outbox.flush()
    valkey.stop()
    found = samples(api)
    assert value(found, "num_requests_waiting", queue="api") == 1
    assert value(found, "model_loaded", model="echo") == 0
    assert value(found, "workers", queue="api") is None
    # Not zero: that would look like a counter that began anew.
    assert value(found, "prompt_tokens_total", model="echo") is None


def test_what_ended_while_redis_was_away_is_counted_later(
    api: APIClient, new_task: NewTask, valkey: Valkey
) -> None:
    lease = claimed(new_task())
    wait_until_enqueued()
    valkey.stop()
    finish.complete(lease, answer(), TIMINGS)
    outbox.flush()
    valkey.start()
    outbox.flush()
    success = {"model": "echo", "finished_reason": "stop"}
    wait_until(lambda: value(samples(api), "request_success_total", **success) == 1)


def test_lost_worker_is_a_failure(api: APIClient, new_task: NewTask, settings: Any) -> None:
    settings.MAX_ATTEMPTS = 1
    task = new_task()
    claimed(task)
    lose(task)
    labels = {"model": "echo", "error_code": "worker_lost"}
    assert value(samples(api), "request_failure_total", **labels) == 1


def test_counters_of_a_forgotten_model_leave_redis(valkey: Valkey) -> None:
    counters.add({("gone", "prompt_tokens"): 1})
    [key] = client().keys("counters:*")
    assert 0 < client().ttl(key) <= 30 * 86_400


def test_unknown_parameter_is_refused(api: APIClient) -> None:
    assert api.get("/metrics?name=x").status_code == 400


def test_labels_are_escaped(api: APIClient) -> None:
    RegisteredModel.objects.create(name='a"b\\c\nd', provider="echo")
    assert value(samples(api), "model_loaded", model='a"b\\c\nd') == 0
