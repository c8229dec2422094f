"""One running service for all tests, which leave nothing unfinished in it."""

import sys
from collections.abc import Iterator

import pytest

from benchmarks.running_service import MINILM, SMOLLM2, RunningService, wait_for

# SmolLM2 once more, without any sharing of batches: what waits for it really waits.
ONE_AT_A_TIME = "one-at-a-time"
SETTINGS = {
    "LEASE_SECONDS": "6",
    "SWEEP_INTERVAL_SECONDS": "1",
    "RING_AGAIN_SECONDS": "1",
    "DEFAULT_EMBEDDING_MODEL": MINILM,
    # A worker that dies takes long to load PyTorch anew where other tests keep the cores busy.
    "EMBEDDING_TIMEOUT_SECONDS": "90",
    # Receivers of tests are on loopback, and are asked again soon.
    "WEBHOOK_ALLOWED_HOSTS": "127.0.0.1",
    "WEBHOOK_RETRY_SECONDS": "0.2",
}


@pytest.fixture(scope="session")
def _running_service(request: pytest.FixtureRequest) -> Iterator[RunningService]:
    service = RunningService(**SETTINGS)
    try:
        service.start("--no-demo")
        service.register_echo()
        service.register_echo("slow-echo", delay_ms=100)
        _register_one_at_a_time(service)
        yield service
    finally:
        if request.session.testsfailed:
            sys.stderr.write(service.log_tails())
        service.close()


def _register_one_at_a_time(service: RunningService) -> None:
    weights = service.model(SMOLLM2)["config"]["model_path"]
    config = {"model_path": weights, "context_window": 2048, "max_num_seqs": 1}
    body = {"name": ONE_AT_A_TIME, "provider": "local", "config": config}
    service.http.post("/models/register", json=body).raise_for_status()


@pytest.fixture
def service(_running_service: RunningService) -> Iterator[RunningService]:
    """The whole service; what a test submits has to end."""
    yield _running_service
    wait_for(lambda: not _unfinished(_running_service))


def _unfinished(service: RunningService) -> list[str]:
    return [
        task["task_id"]
        for status in ("pending", "processing")
        for task in service.http.get("/tasks", params={"status": status}).json()["results"]
    ]
