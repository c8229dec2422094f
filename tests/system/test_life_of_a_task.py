"""Tasks on real weights, through real workers."""

import time
from typing import Any

from benchmarks.running_service import COUNTING, RunningService
from tests.conftest import wait_until
from tests.system.conftest import ONE_AT_A_TIME

PARIS: dict[str, Any] = {
    "prompt": "What is the capital of France? Answer in one short sentence.",
    "max_tokens": 32,
    "temperature": 0,
}
LONG = COUNTING | {"max_tokens": 1500}
SHORT: dict[str, Any] = {"prompt": "Say hello.", "max_tokens": 4, "temperature": 0}


def num_words(task: dict[str, Any]) -> int:
    return int(task["result"]["usage"]["completion_tokens"])


def test_answer_comes_with_usage_and_timings(service: RunningService) -> None:
    task = service.ended(service.submit(**PARIS))
    assert task["status"] == "completed"
    assert "Paris" in task["result"]["text"]
    usage = task["result"]["usage"]
    assert 0 < usage["completion_tokens"] <= 32
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]

    metrics = service.report(task["task_id"])["metrics"]
    assert 0 < metrics["ttft_ms"] <= metrics["total_ms"]
    assert metrics["inference_ms"] <= metrics["total_ms"]
    assert metrics["tokens_per_second"] > 0


def test_wait_answers_as_soon_as_the_task_has_ended(service: RunningService) -> None:
    prompt = "one two three"
    task_id = service.submit(prompt, "slow-echo")
    started = time.monotonic()
    task = service.task(f"{task_id}?wait=30")
    assert task["status"] == "completed"
    assert task["result"]["text"] == prompt
    assert time.monotonic() - started < 10


def test_wait_answers_with_the_state_when_the_time_is_over(service: RunningService) -> None:
    task_id = service.submit("word " * 20, "slow-echo")
    assert service.task(f"{task_id}?wait=0.2")["status"] in ("pending", "processing")
    assert service.ended(task_id)["status"] == "completed"


def test_higher_priority_goes_first(service: RunningService) -> None:
    running = service.submit(**LONG | {"max_tokens": 150}, model=ONE_AT_A_TIME)
    service.processing(running)
    waiting = {
        service.submit(**SHORT, model=ONE_AT_A_TIME, priority=priority): priority
        for priority in (1, 5, 50)
    }
    assert service.task(running)["status"] == "processing", "too short to queue behind"
    ended = [service.ended(task_id) for task_id in waiting]
    assert {task["status"] for task in ended} == {"completed"}
    in_order = sorted(ended, key=lambda task: str(task["finished_at"]))
    assert [waiting[task["task_id"]] for task in in_order] == [50, 5, 1]


def test_cancel_of_a_running_generation_keeps_its_text(service: RunningService) -> None:
    task_id = service.submit(**LONG)
    service.generating(task_id)
    service.http.post(f"/tasks/{task_id}/cancel").raise_for_status()
    task = service.ended(task_id, 5)
    assert task["status"] == "cancelled"
    assert task["result"]["finish_reason"] == "cancelled"
    assert task["result"]["text"]
    assert num_words(task) < 500


def test_cancel_is_heard_during_a_long_prompt(service: RunningService) -> None:
    task_id = service.submit("word " * 1900, max_tokens=8)
    service.processing(task_id)
    service.http.post(f"/tasks/{task_id}/cancel").raise_for_status()
    task = service.ended(task_id, 5)
    assert task["status"] == "cancelled"
    assert num_words(task) == 0


def test_timeout_keeps_the_text(service: RunningService) -> None:
    service.ended(service.submit(**SHORT))  # loads the model, if it is not yet
    task = service.ended(service.submit(**LONG, timeout_seconds=1), 10)
    assert (task["status"], task["error_code"]) == ("failed", "timeout")
    assert task["result"]["finish_reason"] == "timeout"
    assert task["result"]["text"]


def test_task_that_cannot_start_before_its_deadline_fails(service: RunningService) -> None:
    running = service.submit(**LONG, model=ONE_AT_A_TIME)
    service.processing(running)
    task = service.ended(service.submit(**SHORT, model=ONE_AT_A_TIME, deadline_seconds=0.2), 10)
    assert (task["status"], task["error_code"]) == ("failed", "deadline_exceeded")
    assert task["attempt"] == 0
    service.http.post(f"/tasks/{running}/cancel").raise_for_status()


def test_report_shows_attempts_and_logs(service: RunningService) -> None:
    task_id = service.submit(**SHORT)
    service.ended(task_id)
    (attempt,) = service.report(task_id)["attempts"]
    assert (attempt["number"], attempt["outcome"]) == (1, "completed")
    assert attempt["worker"].split(":")[1] == str(service.gpu_child())

    def messages() -> str:
        return " ".join(line["message"] for line in service.report(task_id)["logs"])

    # The lines of a log come a moment after they were written.
    wait_until(lambda: "Attempt 1 started" in messages())
