"""What the health of the running service says when its parts are killed or hang."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks import faults
from benchmarks.running_service import (
    API_WORKER,
    DEFAULT_WORKER,
    GPU_WORKER,
    VALKEY,
    RunningService,
    wait_for,
)

DEGRADED_WITHIN_SECONDS = 10.0
ANSWERS_WITHIN_SECONDS = 1.0


@pytest.fixture(autouse=True)
def _well_before_and_after(service: RunningService) -> Iterator[None]:
    wait_for(lambda: health(service)["status"] == "healthy")
    yield
    wait_for(lambda: health(service)["status"] == "healthy", 40)


def health(service: RunningService) -> dict[str, Any]:
    """What it says; each answer has to come within a second, and its status has to fit."""
    started = time.monotonic()
    response = service.http.get("/monitor/health")
    assert time.monotonic() - started < ANSWERS_WITHIN_SECONDS
    body: dict[str, Any] = response.json()
    assert response.status_code == (503 if body["status"] == "unhealthy" else 200)
    return body


def seen(
    service: RunningService, is_so: Callable[[dict[str, Any]], bool], limit_seconds: float
) -> dict[str, Any]:
    """The first answer that is so."""

    def look() -> dict[str, Any] | None:
        body = health(service)
        return body if is_so(body) else None

    return wait_for(look, limit_seconds)


def is_degraded(body: dict[str, Any]) -> bool:
    return bool(body["status"] == "degraded")


def is_unhealthy(body: dict[str, Any]) -> bool:
    return bool(body["status"] == "unhealthy")


def down(body: dict[str, Any]) -> set[str]:
    return {name for name, part in body["components"].items() if part["status"] == "down"}


@pytest.mark.parametrize(
    ("mark", "queue"), [(GPU_WORKER, "gpu"), (API_WORKER, "api"), (DEFAULT_WORKER, "default")]
)
def test_killed_worker_degrades_the_service(service: RunningService, mark: str, queue: str) -> None:
    worker = service.pid(mark)
    with faults.stopped(service.serve.pid):  # it would start another one at once
        faults.kill(worker)
        body = seen(service, is_degraded, DEGRADED_WITHIN_SECONDS)
    component = body["components"]["workers"]
    assert component["queues"][queue] == 0
    assert f"No live worker for {queue}" in component["message"]


def test_hanging_worker_degrades_the_service(service: RunningService) -> None:
    with faults.stopped(service.pid(GPU_WORKER)):
        body = seen(service, is_degraded, DEGRADED_WITHIN_SECONDS)
    queues = body["components"]["workers"]["queues"]
    assert queues == {"gpu": 0, "api": 1, "embeddings": 1, "default": 1}


def test_hanging_valkey_is_unhealthy(service: RunningService) -> None:
    with faults.stopped(service.pid(VALKEY)):
        body = seen(service, is_unhealthy, 3)
        for _ in range(20):
            assert is_unhealthy(health(service))
    assert body["components"]["redis"]["status"] == "down"
    assert body["components"]["database"]["status"] == "up"


def test_killed_valkey_is_unhealthy_while_it_is_away(service: RunningService) -> None:
    with faults.stopped(service.serve.pid):  # it would start another one at once
        faults.kill(service.pid(VALKEY))
        seen(service, is_unhealthy, 3)
        body = seen(service, lambda body: "channel_layer" in down(body), 3)
        for _ in range(20):
            assert is_unhealthy(health(service))
    assert down(body) == {"redis", "broker", "workers", "channel_layer"}
    assert "REDIS_URL" in body["components"]["redis"]["message"]
