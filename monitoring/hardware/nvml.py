"""The GPUs of this machine through NVML; for workers, never for the web process.

Source: https://docs.nvidia.com/deploy/nvml-api/.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml
from django.conf import settings

from monitoring.hardware import gpu
from monitoring.hardware.gpu import GPU
from monitoring.redis import heartbeats
from monitoring.redis.per_process import PerProcess

logger = logging.getLogger(__name__)

_BYTES_PER_MB = 1024 * 1024
_EXPIRY_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class GPUMemory:
    """What a GPU has, in bytes; used and free are not all where the driver keeps some itself."""

    total_bytes: int
    used_bytes: int
    free_bytes: int


def publish(loaded_models: Callable[[], list[str]]) -> None:
    """Tell of the GPUs of this node for 8 s, and of the models that this worker has on its own.

    Nothing without a GPU. Raises redis.RedisError.
    """
    if gpus := read():
        models = loaded_models()
        for each in gpus:
            each["loaded_models"] = models if each["index"] in settings.GPU_INDEXES else []
        name = ":".join(map(str, (settings.NODE_NAME, *settings.GPU_INDEXES, os.getpid())))
        heartbeats.beat(gpu.HEARTBEATS, name, json.dumps(gpus), _EXPIRY_SECONDS)


def read() -> list[GPU]:
    """All GPUs of the machine, without what is known elsewhere; none without a driver."""
    try:
        _initialise()
        num_gpus = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as exc:
        logger.debug("No NVML: %s", exc)
        return []
    readings = [_reading(index) for index in range(num_gpus)]
    return [reading for reading in readings if reading is not None]


def memory(index: int) -> GPUMemory | None:
    """The memory of one GPU; None without such a one."""
    try:
        _initialise()
        told = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as exc:
        logger.debug("GPU %d: no NVML reading: %s", index, exc)
        return None
    return GPUMemory(told.total, told.used, told.free)


def total_joules(index: int) -> float | None:
    """What one GPU has used since its driver was loaded; None where it does not tell."""
    try:
        _initialise()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except pynvml.NVMLError as exc:
        logger.debug("GPU %d: no energy reading: %s", index, exc)
        return None


@PerProcess
def _initialise() -> None:
    """Once a process, and again after a failure; a forked child cannot use what its parent has."""
    pynvml.nvmlInit()


def _reading(index: int) -> GPU | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as exc:  # it has fallen off the bus, or is not for us
        logger.debug("GPU %d: no handle: %s", index, exc)
        return None
    has = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power_mw = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    return GPU(
        index=index,
        node=settings.NODE_NAME,
        name=_text(_ask(pynvml.nvmlDeviceGetName, handle)),
        driver_version=_text(_ask(pynvml.nvmlSystemGetDriverVersion)),
        cuda_version=_cuda_version(_ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)),
        compute_capability=_version(_ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)),
        total_mb=has and has.total // _BYTES_PER_MB,
        used_mb=has and has.used // _BYTES_PER_MB,
        free_mb=has and has.free // _BYTES_PER_MB,
        used_percent=has and round(100 * has.used / has.total, 1),
        utilization_percent=rates and rates.gpu,
        temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else round(power_mw / 1000, 1),
        is_locked=False,
        current_task_id=None,
        loaded_models=[],
    )


def _ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """What NVML answers; None for what this GPU does not support, or does not tell us."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as exc:
        logger.debug("%s: %s", function.__name__, exc)
        return None


def _text(value: str | bytes | None) -> str | None:
    """Older bindings give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _cuda_version(number: int | None) -> str | None:
    """NVML says 12040 for 12.4."""
    return None if number is None else _version((number // 1000, number % 1000 // 10))


def _version(parts: tuple[int, int] | None) -> str | None:
    return None if parts is None else f"{parts[0]}.{parts[1]}"
