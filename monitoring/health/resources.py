"""Disk and memory of the machine that this process runs on, in MiB."""

from typing import TypedDict

import psutil
from django.conf import settings

_BYTES_PER_MB = 1024 * 1024


class Resources(TypedDict):
    """The disk is the one that VAR_DIR lies on; memory that can be had at once counts as free."""

    disk_total_mb: int
    disk_used_mb: int
    disk_free_mb: int
    disk_used_percent: float
    memory_total_mb: int
    memory_used_mb: int
    memory_free_mb: int
    memory_used_percent: float


def read() -> Resources:
    """The resources now. Raises OSError when the disk cannot be read."""
    disk = psutil.disk_usage(str(settings.VAR_DIR))
    memory = psutil.virtual_memory()
    return Resources(
        disk_total_mb=disk.total // _BYTES_PER_MB,
        disk_used_mb=disk.used // _BYTES_PER_MB,
        disk_free_mb=disk.free // _BYTES_PER_MB,
        disk_used_percent=disk.percent,
        memory_total_mb=memory.total // _BYTES_PER_MB,
        memory_used_mb=(memory.total - memory.available) // _BYTES_PER_MB,
        memory_free_mb=memory.available // _BYTES_PER_MB,
        memory_used_percent=memory.percent,
    )
