"""Liveness, readiness and health, answered within a second."""

import time
from typing import Literal, NotRequired, TypedDict

from django.conf import settings
from django.http import HttpRequest, JsonResponse

from monitoring.events.events import Timestamp, now
from monitoring.hardware import gpu
from monitoring.hardware.gpu import GPUStats
from monitoring.health import probes, resources
from monitoring.health.cached_check import CachedCheck
from monitoring.health.probes import Finding, Status
from monitoring.health.resources import Resources

# Of all checks together, since they run side by side.
_LIMIT_SECONDS = 0.7
_ESSENTIAL = ("database", "redis", "broker")
_started_at = time.monotonic()

Overall = Literal["healthy", "degraded", "unhealthy"]


class Component(TypedDict):
    """`response_time_ms`: how long its check took; `queues`: live workers of each."""

    status: Status
    message: str
    response_time_ms: float
    queues: NotRequired[dict[str, int]]


class GPUSummary(TypedDict):
    """All GPUs together; None where one of them does not tell."""

    available: bool
    num_gpus: int
    total_mb: int | None
    used_mb: int | None


class Health(TypedDict):
    """The body of GET /monitor/health; `resources` is None when they cannot be read."""

    status: Overall
    version: str
    uptime_seconds: float
    timestamp: Timestamp
    components: dict[str, Component]
    resources: Resources | None
    gpu: GPUSummary


_checks = {
    name: CachedCheck(name, probe, lambda finding: finding.status == Status.UP)
    for name, probe in probes.COMPONENTS.items()
}
_resources = CachedCheck("resources", resources.read)
_gpu = CachedCheck("gpu", gpu.stats)


def check() -> Health:
    """How everything is, at most a second old; never late, whatever hangs."""
    _resources.begin()
    _gpu.begin()
    components = _components(*_checks)
    return Health(
        status=_overall(components),
        version=settings.VERSION,
        uptime_seconds=round(time.monotonic() - _started_at, 1),
        timestamp=now(),
        components=components,
        resources=_resources.found(_LIMIT_SECONDS),
        gpu=_summary(_gpu.found(_LIMIT_SECONDS)),
    )


def healthz(request: HttpRequest) -> JsonResponse:
    """200 while the process lives."""
    return JsonResponse({"status": "alive"})


def readyz(request: HttpRequest) -> JsonResponse:
    """200 when tasks can be accepted: the database answers.

    Redis and workers may be away: tasks are kept meanwhile, and run when they are back.
    """
    components = _components("database", "redis", "workers")
    is_ready = components["database"]["status"] == Status.UP
    body = {
        "status": "ready" if is_ready else "unready",
        "components": {
            "database": components["database"]["status"],
            "redis": components["redis"]["status"],
            "workers": components["workers"].get("queues", {}),
        },
    }
    return JsonResponse(body, status=200 if is_ready else 503)


def _components(*names: str) -> dict[str, Component]:
    for name in names:
        _checks[name].begin()
    return {name: _component(name, _checks[name]) for name in names}


def _component(name: str, check: CachedCheck[Finding]) -> Component:
    finding = check.found(_LIMIT_SECONDS)
    if finding is None:
        if check.is_running:
            message = f"No answer for {check.elapsed_ms / 1000:.1f} s: check whether it hangs."
        else:
            message = "The check failed: the log of the web process says why."
        queues = dict.fromkeys(settings.WORKER_QUEUES, 0) if name == probes.WORKERS else {}
        finding = Finding(Status.DOWN, message, queues)
    component = Component(
        status=finding.status,
        message=finding.message,
        response_time_ms=check.elapsed_ms,
    )
    if name == probes.WORKERS:
        component["queues"] = finding.queues
    return component


def _overall(components: dict[str, Component]) -> Overall:
    if any(components[name]["status"] == Status.DOWN for name in _ESSENTIAL):
        return "unhealthy"
    is_well = all(component["status"] == Status.UP for component in components.values())
    return "healthy" if is_well else "degraded"


def _summary(stats: GPUStats | None) -> GPUSummary:
    gpus = stats["gpus"] if stats else []

    def total(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if values and len(known) == len(values) else None

    return GPUSummary(
        available=bool(gpus),
        num_gpus=len(gpus),
        total_mb=total([each["total_mb"] for each in gpus]),
        used_mb=total([each["used_mb"] for each in gpus]),
    )
