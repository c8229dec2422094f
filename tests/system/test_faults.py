"""Processes are killed and data is lost; every accepted task still ends, exactly once."""

import signal
import time
from collections.abc import Callable, Iterable

import pytest

from benchmarks import faults
from benchmarks.running_service import (
    API_WORKER,
    COUNTING,
    GPU_WORKER,
    SMOLLM2,
    VALKEY,
    RunningService,
    wait_for,
)

COUNT = COUNTING | {"max_tokens": 100}
WORDS = "one two three four five six seven eight"


def assert_completed_once(service: RunningService, task_ids: Iterable[str]) -> None:
    for task_id in task_ids:
        service.ended(task_id, 90)
    reports = [service.report(task_id) for task_id in task_ids]
    assert [faults.what_is_wrong(report) for report in reports] == [None] * len(reports)


def outcomes(service: RunningService, task_id: str) -> list[str]:
    return [attempt["outcome"] for attempt in service.report(task_id)["attempts"]]


def assert_survived(service: RunningService, kill: Callable[[RunningService], object]) -> str:
    """Kill in mid-generation, with a task waiting behind; the id of the one that was running."""
    running = service.submit(**COUNT)
    waiting = service.submit(**COUNT | {"max_tokens": 8})
    service.generating(running)
    kill(service)
    assert_completed_once(service, [running, waiting])
    assert outcomes(service, running) == ["lost", "completed"]
    return running


def test_killed_pool_child(service: RunningService) -> None:
    running = assert_survived(service, faults.kill_gpu_child)
    assert service.task(running)["result"]["text"].startswith("1, 2, 3")


def test_killed_gpu_worker(service: RunningService) -> None:
    assert_survived(service, faults.kill_gpu_worker)


def test_killed_api_worker(service: RunningService) -> None:
    task_ids = [service.submit(WORDS, "slow-echo") for _ in range(5)]
    for task_id in task_ids:
        service.processing(task_id)
    faults.kill_api_worker(service)
    task_ids.append(service.submit(WORDS, "slow-echo"))
    assert_completed_once(service, task_ids)
    assert {service.task(task_id)["result"]["text"] for task_id in task_ids} == {WORDS}


@pytest.mark.parametrize("model", [SMOLLM2, "echo"])
def test_web_process_killed_between_commit_and_message(service: RunningService, model: str) -> None:
    web = faults.DyingWeb(service, model, WORDS)
    web.submit_and_die()
    assert_completed_once(service, [web.task_id])


def test_valkey_killed_and_empty(service: RunningService) -> None:
    workers = service.pid(GPU_WORKER), service.pid(API_WORKER)
    running = [service.submit(**COUNT), service.submit(f"{WORDS} {WORDS}", "slow-echo")]
    for task_id in running:
        service.generating(task_id)
    waiting = [service.submit(**COUNT | {"max_tokens": 8}) for _ in range(3)]
    faults.empty_valkey(service)
    waiting += [service.submit(WORDS, "echo"), service.submit(**COUNT | {"max_tokens": 8})]
    assert_completed_once(service, running + waiting)
    for task_id in running:
        assert outcomes(service, task_id) == ["completed"]
    assert (service.pid(GPU_WORKER), service.pid(API_WORKER)) == workers


def test_stalled_valkey_holds_up_no_submission(service: RunningService) -> None:
    with faults.stopped(service.pid(VALKEY)):
        task_ids = []
        continue_at = time.monotonic() + 3
        while time.monotonic() < continue_at:
            started = time.monotonic()
            task_ids.append(service.submit(WORDS, "echo"))
            assert time.monotonic() - started < 2
            service.task(f"{task_ids[-1]}?wait=0.3")
    assert_completed_once(service, task_ids)


def test_task_that_kills_its_worker_twice_alone_fails(service: RunningService) -> None:
    task_id = service.submit(**COUNT | {"max_tokens": 1500})
    for number in (1, 2):
        faults.kill(faults.worker_that_answers(service, task_id, number))
    task = service.ended(task_id)
    assert (task["status"], task["error_code"]) == ("failed", "worker_lost")
    assert outcomes(service, task_id) == ["lost"] * 2
    assert service.ended(service.submit(WORDS, max_tokens=2))["status"] == "completed"


def test_prompt_that_kills_its_worker_takes_no_other_task_with_it(service: RunningService) -> None:
    innocent = [service.submit(**COUNT) for _ in range(3)]
    poisonous = service.submit(**COUNT | {"max_tokens": 1500})
    for task_id in innocent:
        service.processing(task_id)
    for number in (1, 2, 3):
        faults.kill(faults.worker_that_answers(service, poisonous, number), signal.SIGSEGV)
    task = service.ended(poisonous)
    assert (task["status"], task["error_code"]) == ("failed", "worker_lost")
    assert "prompt" in task["error"]
    errors = [attempt["error"] for attempt in service.report(poisonous)["attempts"]]
    assert errors[0] is None
    assert all("SIGSEGV" in error for error in errors[1:])
    assert_completed_once(service, innocent)
    assert [outcomes(service, task_id) for task_id in innocent] == [["lost", "completed"]] * 3
    wait_for(lambda: service.model(SMOLLM2)["status"] == "available")
    assert service.ended(service.submit(WORDS, max_tokens=2))["status"] == "completed"


def test_worker_that_is_restarted_again_and_again_fails_no_task(service: RunningService) -> None:
    task_ids = [service.submit(**COUNT) for _ in range(8)]
    first = task_ids[0]
    for number in (1, 2, 3):
        faults.worker_that_answers(service, first, number)
        faults.kill_gpu_worker(service)
    assert_completed_once(service, task_ids)
    assert outcomes(service, first) == ["lost"] * 3 + ["completed"]
