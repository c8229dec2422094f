"""Two GPU workers, on a machine whose processor stands in for both GPUs."""

from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks.running_service import COUNTING, SMOLLM2, RunningService

GEMMA = "gemma-3-270m"


@pytest.fixture
def two_workers() -> Iterator[RunningService]:
    service = RunningService(GPU_WORKERS="0 1")
    try:
        service.start("--no-demo")
        yield service
    finally:
        service.close()


def test_two_models_stay_with_a_worker_each(two_workers: RunningService) -> None:
    service = two_workers
    running = service.submit(**COUNTING, model=SMOLLM2, max_tokens=400)
    first = service.ended(service.submit(**COUNTING, model=GEMMA, max_tokens=4), 60)
    assert first["status"] == "completed"
    assert service.ended(running, 60)["status"] == "completed"
    workers: dict[str, Counter[str]] = {SMOLLM2: Counter(), GEMMA: Counter()}
    for _ in range(4):
        for model, counter in workers.items():
            task = service.ended(service.submit(**COUNTING, model=model, max_tokens=4))
            report = service.http.get(f"/tasks/{task['task_id']}/report").json()
            assert report["metrics"]["model_load_ms"] is None
            counter[report["attempts"][0]["worker"]] += 1
    assert [len(counter) for counter in workers.values()] == [1, 1]
    assert workers[SMOLLM2] != workers[GEMMA]
