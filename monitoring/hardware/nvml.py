"""Readings of the GPUs of this machine through NVML; for workers, never for the web process.

Units: MiB, percent, degrees Celsius, watts. What a GPU does not tell is None.
Source: https://docs.nvidia.com/deploy/nvml-api/.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

from monitoring.redis.per_process import PerProcess

logger = logging.getLogger(__name__)

_BYTES_PER_MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class GPUReading:
    """One GPU at this moment; `index` is NVML's, which CUDA_VISIBLE_DEVICES does not change."""

    index: int
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


@dataclass(frozen=True, slots=True)
class GPUMemory:
    """What a GPU has, in bytes; used and free are not all where the driver keeps some itself."""

    total_bytes: int
    used_bytes: int
    free_bytes: int


def read() -> list[GPUReading]:
    """All GPUs of the machine; none without a driver."""
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


@PerProcess
def _initialise() -> None:
    """Once a process, and again after a failure; a forked child cannot use what its parent has."""
    pynvml.nvmlInit()


def _reading(index: int) -> GPUReading | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as exc:  # it has fallen off the bus, or is not for us
        logger.debug("GPU %d: no handle: %s", index, exc)
        return None
    has = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power_mw = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    return GPUReading(
        index=index,
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
