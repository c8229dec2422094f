"""One running service for all tests, which leave nothing unfinished in it."""

import sys
from collections.abc import Iterator

import pytest

from benchmarks.running_service import RunningService, wait_for

SETTINGS = {"LEASE_SECONDS": "6", "SWEEP_INTERVAL_SECONDS": "1", "RING_AGAIN_SECONDS": "1"}


@pytest.fixture(scope="session")
def _running_service(request: pytest.FixtureRequest) -> Iterator[RunningService]:
    service = RunningService(**SETTINGS)
    try:
        service.start("--no-demo")
        service.register_echo()
        service.register_echo("slow-echo", delay_ms=100)
        yield service
    finally:
        if request.session.testsfailed:
            sys.stderr.write(service.log_tails())
        service.close()


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
