"""The memory that models may use, and whether one more model fits.

That of GPUs as NVML tells it; without a GPU the machine's, or of a container its share.
"""

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

import psutil
import redis
from django.conf import settings

from inference.engine.errors import ModelLoadError
from inference.engine.memory_estimate import MemoryEstimate
from inference.engine.runner import GPUSplit
from monitoring.redis import heartbeats

logger = logging.getLogger(__name__)

DEFAULT_SPLIT = GPUSplit()

_MB = 1024 * 1024
_MEMBERSHIPS = Path("/proc/self/cgroup")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_GROUP = "model_memory"
_PUBLISHED_SECONDS = 30
_LIMIT_REMEDY = "raise MODEL_MEMORY_LIMIT_MB"
_GPU_REMEDY = (
    "give it fewer gpu_layers, free some, lower VRAM_RESERVE_MB, or raise MAX_VRAM_USAGE_PERCENT"
)
_RAM_REMEDY = "free some, lower RAM_RESERVE_MB, or raise MAX_RAM_USAGE_PERCENT"


class MemoryKind(StrEnum):
    GPU = "gpu"
    RAM = "ram"


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One reading; `usable_bytes` may be taken: the reserve and the percentage are respected."""

    kind: MemoryKind
    total_bytes: int
    free_bytes: int
    usable_bytes: int


def has_gpu() -> bool:
    """Whether NVML sees the GPUs that this worker is for."""
    return bool(_read_gpus())


def show_own_gpus() -> None:
    """Have CUDA see the GPUs of this worker alone, by NVML's numbers; before it is first used.

    A list that the environment has already stays.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, settings.GPU_INDEXES)))


def used_gpu_layers(gpu_layers: int) -> int:
    """How many layers will be on the GPU: none without one, whatever was asked for."""
    return gpu_layers if gpu_layers and has_gpu() else 0


def read(gpu_layers: int) -> DeviceMemory:
    """The memory for a model's layers: RAM with `gpu_layers` 0, and where NVML sees no GPU.

    What may be used is at most MODEL_MEMORY_LIMIT_MB, where that is set.
    """
    gpus = _read_gpus() if gpu_layers else []
    memory = _sum(gpus) if gpus else _read_ram()
    limit_bytes = settings.MODEL_MEMORY_LIMIT_MB * _MB or memory.total_bytes
    return replace(memory, usable_bytes=min(memory.usable_bytes, limit_bytes))


def check_fits(
    model_name: str,
    needed: MemoryEstimate,
    *,
    gpu_layers: int,
    gpu_split: GPUSplit = DEFAULT_SPLIT,
    staying: Sequence[MemoryEstimate] = (),
    leaving: Sequence[MemoryEstimate] = (),
) -> None:
    """Raise ModelLoadError, saying what is missing and what to change, unless the model fits.

    `staying`: what the models take that this worker has in memory; `leaving`: others, which it
    has too, but would free for this one, spread as `gpu_split` spreads it. `gpu_layers` and the
    estimates come from `used_gpu_layers`.
    """
    if settings.MODEL_MEMORY_LIMIT_MB:
        held = sum(each.total_bytes for each in staying)
        left = settings.MODEL_MEMORY_LIMIT_MB * _MB - held
        where = "memory under MODEL_MEMORY_LIMIT_MB"
        _check(model_name, needed, needed.total_bytes, left, where, _LIMIT_REMEDY)
    if gpu_layers and (gpus := _read_gpus()):
        freed = sum(each.device_bytes for each in leaving)
        shares = gpu_split.shares(len(gpus))
        if shares is None:
            usable = _sum(gpus).usable_bytes + freed
            _check(model_name, needed, needed.device_bytes, usable, "GPU memory", _GPU_REMEDY)
        for index, gpu, share in zip(settings.GPU_INDEXES, gpus, shares or (), strict=False):
            device_bytes, usable = int(needed.device_bytes * share), int(freed * share)
            where = f"the memory of GPU {index}"
            _check(
                *(model_name, needed, device_bytes, gpu.usable_bytes + usable, where, _GPU_REMEDY)
            )
    ram = _read_ram()
    # Weights are mapped from their file, and look like free memory though they are in use.
    held = sum(each.host_bytes for each in staying)
    usable = ram.usable_bytes + sum(each.host_bytes for each in leaving)
    usable = min(usable, _usable_ram(ram.total_bytes, ram.total_bytes - held))
    _check(model_name, needed, needed.host_bytes, usable, "RAM", _RAM_REMEDY)


def publish() -> None:
    """Publish, for 30 s, what this worker's models may use."""
    reading = json.dumps(asdict(read(settings.GPU_LAYERS)))
    name = ":".join([settings.NODE_NAME, *map(str, settings.GPU_INDEXES)])
    try:
        heartbeats.beat(_GROUP, name, reading, _PUBLISHED_SECONDS)
    except redis.RedisError as exc:
        logger.warning("The memory for models cannot be published: %s", exc)


def published() -> DeviceMemory | None:
    """The last reading of a GPU worker; None without one, and without Redis.

    Of several workers the one that has the least to give: any of them may get the task.
    """
    try:
        readings = [json.loads(text) for text in heartbeats.read(_GROUP).values()]
    except redis.RedisError as exc:
        logger.debug("No published readings of memory: %s", exc)
        return None
    found = [DeviceMemory(**fields | {"kind": MemoryKind(fields["kind"])}) for fields in readings]
    return min(found, key=lambda memory: memory.usable_bytes, default=None)


def _check(
    model_name: str,
    needed: MemoryEstimate,
    share_bytes: int,
    usable_bytes: int,
    where: str,
    remedy: str,
) -> None:
    if share_bytes <= usable_bytes:
        return
    parts = (
        f"weights {needed.weights_bytes / _MB:.0f} MB, KV cache {needed.kv_cache_bytes / _MB:.0f}"
        f" MB, compute {needed.compute_bytes / _MB:.0f} MB"
    )
    raise ModelLoadError(
        f"{model_name} needs {share_bytes / _MB:.0f} MB of {where} (in all {parts}), and "
        f"{max(0, usable_bytes) / _MB:.0f} MB may be used: lower its context_window or "
        f"max_num_seqs (MAX_NUM_SEQS), take a smaller quantization, {remedy}."
    )


def _read_gpus() -> list[DeviceMemory]:
    """Each GPU of this worker; none where NVML does not see all of them."""
    from monitoring.hardware import nvml  # NVML is loaded by few processes

    readings = []
    for index in settings.GPU_INDEXES:
        memory = nvml.memory(index)
        if memory is None:
            return []
        total, free = memory.total_bytes, memory.free_bytes
        may_be_used = int(total * settings.MAX_VRAM_USAGE_PERCENT / 100) - memory.used_bytes
        usable = min(may_be_used, free - settings.VRAM_RESERVE_MB * _MB)
        readings.append(DeviceMemory(MemoryKind.GPU, total, free, max(0, usable)))
    return readings


def _sum(gpus: Sequence[DeviceMemory]) -> DeviceMemory:
    return DeviceMemory(
        MemoryKind.GPU,
        sum(gpu.total_bytes for gpu in gpus),
        sum(gpu.free_bytes for gpu in gpus),
        sum(gpu.usable_bytes for gpu in gpus),
    )


def _read_ram() -> DeviceMemory:
    machine = psutil.virtual_memory()
    total, free = container_memory() or (machine.total, machine.available)
    total, free = min(machine.total, total), min(machine.available, free)
    return DeviceMemory(MemoryKind.RAM, total, free, _usable_ram(total, free))


def container_memory() -> tuple[int, int] | None:
    """Total and free bytes under the tightest limit of this process's container; None without any.

    From Linux control groups 1 or 2, of all groups that the process's own lies in. In a container
    the names are often those of the host, which its own view does not have: then the root counts.
    """
    try:
        memberships = _MEMBERSHIPS.read_text().splitlines()
    except OSError:  # no Linux
        return None
    limits = []
    for membership in memberships:
        _, controllers, name = membership.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CONTROL_GROUPS / "memory" if controllers else _CONTROL_GROUPS
        group = root / name.strip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
                if folder.is_relative_to(root):
                    limits.append(_limit_of(folder))
    return min(limits, key=lambda limit: limit[1], default=None)


def _limit_of(group: Path) -> tuple[int, int]:
    """Total and free bytes, cached files being free. Raises OSError or ValueError without any."""
    if (group / "memory.max").is_file():
        limit_name, usage_name, prefix = "memory.max", "memory.current", ""
    else:
        limit_name, usage_name, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
    total, used = (int((group / name).read_text()) for name in (limit_name, usage_name))
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    files = (f"{prefix}active_file", f"{prefix}inactive_file")
    used -= sum(int(statistics.get(key, 0)) for key in files)
    return total, max(0, total - max(0, used))


def _usable_ram(total: int, free: int) -> int:
    may_be_used = int(total * settings.MAX_RAM_USAGE_PERCENT / 100) - (total - free)
    return max(0, min(may_be_used, free - settings.RAM_RESERVE_MB * _MB))
