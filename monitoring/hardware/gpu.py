"""The GPUs of all nodes: each GPU worker shows what NVML tells it, any process can read it."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, TypedDict, cast

import redis
from django.conf import settings

from monitoring.redis import heartbeats
from monitoring.redis.client import client

logger = logging.getLogger(__name__)

_GROUP = "gpus"
_SHOWN_SECONDS = 8.0
_CACHED_SECONDS = 1.0


class GPU(TypedDict):
    """One GPU; see `nvml.GPUReading` for the units. None for what it does not tell.

    `is_locked` while a generation runs on it, `current_task_id` is the one that leads the session.
    """

    index: int
    node: str
    name: str | None
    driver_version: str | None
    cuda_version: str | None
    compute_capability: str | None
    total_mb: int | None
    used_mb: int | None
    free_mb: int | None
    used_percent: float | None
    utilization_percent: int | None
    temperature_c: int | None
    power_w: float | None
    is_locked: bool
    current_task_id: str | None
    loaded_models: list[str]


class GPUStats(TypedDict):
    """All GPUs by node and index; `available` when there is any."""

    available: bool
    gpus: list[GPU]


class _Note(TypedDict):
    """What one worker shows: the GPUs of its node, and the models it has loaded on one of them."""

    node: str
    gpus: list[dict[str, Any]]
    index: int
    loaded_models: list[str]


def lease_key(node: str, index: int) -> str:
    """The Redis key that exists while somebody holds the GPU."""
    return f"gpu:{node}:{index}:lease"


def task_key(node: str, index: int) -> str:
    """The Redis key with the task that the holder of the GPU works on."""
    return f"gpu:{node}:{index}:task"


def publish(loaded_models: Callable[[], list[str]]) -> None:
    """Show the GPUs of this node for 8 s, and the models that this worker has on GPU_INDEX.

    Nothing without a GPU. Raises redis.RedisError.
    """
    from monitoring.hardware import nvml  # the web process has no use for it

    readings = nvml.read()
    if not readings:
        return
    note = _Note(
        node=settings.NODE_NAME,
        gpus=[asdict(reading) for reading in readings],
        index=settings.GPU_INDEX,
        loaded_models=loaded_models(),
    )
    name = f"{settings.NODE_NAME}:{settings.GPU_INDEX}:{os.getpid()}"
    heartbeats.beat(_GROUP, name, json.dumps(note), _SHOWN_SECONDS)


def stats() -> GPUStats:
    """What is known of all GPUs, at most a second old; nothing while Redis is away."""
    global _cached
    with _one_reader:
        if time.monotonic() - _cached[0] > _CACHED_SECONDS:
            read = _read()
            _cached = (time.monotonic(), read)
        return _cached[1]


_one_reader = threading.Lock()
_cached: tuple[float, GPUStats] = (float("-inf"), GPUStats(available=False, gpus=[]))


def _read() -> GPUStats:
    try:
        notes: list[_Note] = [json.loads(text) for text in heartbeats.read(_GROUP).values()]
        gpus = _with_holders(_merged(notes))
    except redis.RedisError as exc:
        logger.debug("No GPU readings: %s", exc)
        gpus = []
    return GPUStats(available=bool(gpus), gpus=gpus)


def _merged(notes: Iterable[_Note]) -> list[GPU]:
    """Each GPU once, though every worker of its node shows it; the models of all workers on it."""
    gpus: dict[tuple[str, int], GPU] = {}
    models: dict[tuple[str, int], set[str]] = {}
    for note in notes:
        for reading in note["gpus"]:
            key = (note["node"], reading["index"])
            more = {"node": note["node"], "is_locked": False, "current_task_id": None}
            gpus[key] = cast(GPU, reading | more)
        models.setdefault((note["node"], note["index"]), set()).update(note["loaded_models"])
    for key, gpu in gpus.items():
        gpu["loaded_models"] = sorted(models.get(key, ()))
    return [gpus[key] for key in sorted(gpus)]


def _with_holders(gpus: list[GPU]) -> list[GPU]:
    places = [(gpu["node"], gpu["index"]) for gpu in gpus]
    keys = [key for place in places for key in (lease_key(*place), task_key(*place))]
    values = client().mget(keys) if keys else []
    for gpu, lease, task_id in zip(gpus, values[::2], values[1::2], strict=True):
        gpu["is_locked"] = lease is not None
        gpu["current_task_id"] = task_id if lease is not None else None
    return gpus
