"""Answers of a real model are streamed, whatever happens to the service meanwhile."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx

from benchmarks import faults
from benchmarks.event_stream import StreamedAnswer, read_events
from benchmarks.running_service import (
    COUNTING,
    ROOT,
    SMOLLM2,
    RunningService,
    free_port,
    wait_for,
)

COUNT = COUNTING | {"max_tokens": 100}
NUM_POINTS = 20


@contextmanager
def another_web(service: RunningService) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """One more web process of the service, at a port of its own."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", "sopllm.asgi:application", f"--port={port}"),
        *("--timeout-graceful-shutdown=1", "--log-level=error"),
    ]
    web = subprocess.Popen(command, cwd=ROOT, env=service.env)
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=70, trust_env=False)
    try:
        wait_for(lambda: is_up(http))
        yield web, http
    finally:
        http.close()
        web.kill()
        web.wait()


def is_up(http: httpx.Client) -> bool:
    try:
        return http.get("/tasks").status_code == 200
    except httpx.HTTPError:
        return False


def read_all(
    http: httpx.Client, task_id: str, answer: StreamedAnswer | None = None
) -> StreamedAnswer:
    """Read on to the end."""
    answer = answer or StreamedAnswer()
    answer.take(read_events(http, task_id, answer.last_id))
    return answer


def read_until(
    http: httpx.Client, task_id: str, is_enough: Callable[[StreamedAnswer], object]
) -> StreamedAnswer:
    """Read, and go away as soon as it is enough."""
    answer = StreamedAnswer()
    with closing(read_events(http, task_id)) as events:
        for event in events:
            answer.take([event])
            if is_enough(answer):
                break
    return answer


def assert_right(service: RunningService, task_id: str, answer: StreamedAnswer) -> None:
    task = service.task(task_id)
    assert task["status"] == "completed"
    assert answer.text == task["result"]["text"]
    assert answer.end is not None
    assert (answer.end.type, answer.end.data) == ("completed", task)


def test_stream_resumed_at_random_points_is_the_text(service: RunningService) -> None:
    points = random.Random(1).sample(range(1, 150), NUM_POINTS)  # noqa: S311 - no secrets
    task_id = service.submit(**COUNT)
    with another_web(service) as (_, http), ThreadPoolExecutor(NUM_POINTS) as clients:

        def interrupted(point: int) -> StreamedAnswer:
            answer = read_until(service.http, task_id, lambda each: len(each.text) >= point)
            return read_all(http, task_id, answer)

        while_it_ran = list(clients.map(interrupted, points))
        whole = StreamedAnswer()
        cuts = []
        for event in read_events(service.http, task_id):
            whole.take([event])
            cuts.append((whole.last_id, whole.text))
        afterwards = []
        for last_id, text in cuts[1:-1]:
            answer = StreamedAnswer()
            answer.last_id, answer.text = last_id, text
            afterwards.append(read_all(http, task_id, answer))
    for answer in [whole, *while_it_ran, *afterwards]:
        assert_right(service, task_id, answer)
        assert answer.num_restarts == 0
    assert len(afterwards) > 2


def test_worker_killed_in_mid_stream(service: RunningService) -> None:
    task_id = service.submit(**COUNT)
    with ThreadPoolExecutor(1) as clients:
        following = clients.submit(read_all, service.http, task_id)
        left = read_until(service.http, task_id, lambda each: len(each.text) >= 30)
        faults.kill_gpu_child(service)
        answer = following.result(60)
    assert answer.num_restarts == 1
    assert_right(service, task_id, answer)
    assert_right(service, task_id, read_all(service.http, task_id, left))
    assert left.num_restarts == 1


def test_valkey_killed_and_empty_in_mid_stream(service: RunningService) -> None:
    task_id = service.submit(**COUNT)
    with ThreadPoolExecutor(1) as clients:
        following = clients.submit(read_all, service.http, task_id)
        left = read_until(service.http, task_id, lambda each: len(each.text) >= 30)
        faults.empty_valkey(service)
        late = read_all(service.http, task_id)
        answer = following.result(60)
    read_all(service.http, task_id, left)
    for each in (answer, late, left):
        assert_right(service, task_id, each)
        assert each.num_restarts == 0


def test_open_stream_does_not_keep_a_web_process_from_stopping(service: RunningService) -> None:
    task_id = service.submit(**COUNTING, max_tokens=1500)
    with another_web(service) as (web, http):
        answer = StreamedAnswer()
        with closing(read_events(http, task_id)) as events:
            answer.take([next(events), next(events)])
            web.terminate()
            answer.take(events)  # it is ended in order, or this raises
        assert web.wait(10) is not None
    assert answer.end is None
    service.http.post(f"/tasks/{task_id}/cancel").raise_for_status()
    read_all(service.http, task_id, answer)
    task = service.task(task_id)
    assert (task["status"], task["result"]["text"]) == ("cancelled", answer.text)


def test_eight_answersat_once(service: RunningService) -> None:
    task_ids = [service.submit(f"Tell me about {n}.", SMOLLM2, max_tokens=32) for n in range(8)]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda task_id: read_all(service.http, task_id), task_ids))
    for task_id, answer in zip(task_ids, answers, strict=True):
        assert_right(service, task_id, answer)
