"""Does a model fit into the GPU's memory: asked of NVML before llama.cpp tries."""

import logging

from django.conf import settings

from inference.engine.errors import ModelLoadError

logger = logging.getLogger(__name__)

_MB = 1024 * 1024


def check_fits(size_bytes: int, gpu_layers: int) -> None:
    """Raise ModelLoadError when the weights alone exceed what may be used of the GPU's memory.

    May be used: what is free, less VRAM_RESERVE_MB, and at most MAX_VRAM_USAGE_PERCENT of all.
    Without an NVIDIA GPU, or with no layers on it, nothing is checked.
    """
    if gpu_layers == 0:
        return
    available_mb = _available_mb(settings.GPU_INDEX)
    if available_mb is not None and size_bytes / _MB > available_mb:
        raise ModelLoadError(
            f"its weights need {size_bytes / _MB:.0f} MB of GPU memory, and {available_mb:.0f} MB "
            "may be used: free some, lower VRAM_RESERVE_MB, raise MAX_VRAM_USAGE_PERCENT, or "
            "register it with fewer gpu_layers."
        )


def has_gpu() -> bool:
    """Whether NVML sees the GPU that this worker is for."""
    return _available_mb(settings.GPU_INDEX) is not None


def _available_mb(gpu_index: int) -> float | None:
    # Only the GPU worker asks, and most machines that run the tests have no driver.
    import pynvml

    try:
        pynvml.nvmlInit()
        memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(gpu_index))
    except pynvml.NVMLError as exc:
        logger.debug("GPU %d: no NVML reading: %s", gpu_index, exc)
        return None
    may_be_used = memory.total * settings.MAX_VRAM_USAGE_PERCENT / 100 - memory.used
    free = memory.free - settings.VRAM_RESERVE_MB * _MB
    return max(0.0, float(min(may_be_used, free)) / _MB)
