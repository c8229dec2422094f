"""The GPUs of all nodes, as their workers say by heartbeats."""

import json
import logging
import threading
import time
from typing import TypedDict

import redis

from monitoring.redis import heartbeats
from monitoring.redis.client import client

logger = logging.getLogger(__name__)

# Heartbeats by worker: the GPUs of its node, as JSON.
HEARTBEATS = "gpu_readings"

_CACHED_SECONDS = 1.0


class GPU(TypedDict):
    """One GPU; MiB, percent, degrees Celsius, watts. None for what it does not tell.

    `index` is NVML's, which CUDA_VISIBLE_DEVICES does not change. `is_locked` while a generation
    runs on it, `current_task_id` is the first one of the session. `loaded_models` are those of the
    workers of this GPU.
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


def lease_key(node: str, index: int) -> str:
    """The Redis key that exists while somebody holds the GPU."""
    return f"gpu:{node}:{index}:lease"


def task_key(node: str, index: int) -> str:
    """The Redis key with the task that the holder of the GPU works on."""
    return f"gpu:{node}:{index}:task"


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
    """Each GPU once, though every worker of its node tells of it."""
    found: dict[tuple[str, int], GPU] = {}
    try:
        for text in heartbeats.read(HEARTBEATS).values():
            for told in json.loads(text):
                gpu = found.setdefault((told["node"], told["index"]), told)
                models = {*gpu["loaded_models"], *told["loaded_models"]}
                gpu["loaded_models"] = sorted(models)
        gpus = [found[place] for place in sorted(found)]
        keys = [key for place in sorted(found) for key in (lease_key(*place), task_key(*place))]
        holders = client().mget(keys) if keys else []
    except redis.RedisError as exc:
        logger.debug("No GPU readings: %s", exc)
        return GPUStats(available=False, gpus=[])
    for gpu, lease, task_id in zip(gpus, holders[::2], holders[1::2], strict=True):
        gpu["is_locked"] = lease is not None
        gpu["current_task_id"] = task_id if lease is not None else None
    return GPUStats(available=bool(gpus), gpus=gpus)
