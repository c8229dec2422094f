"""The memory limit of the container this process runs in, from Linux control groups 1 or 2."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MEMBERSHIPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class ContainerMemory:
    """The limit, and what is left of it when cached files are given up."""

    total_bytes: int
    free_bytes: int


def read() -> ContainerMemory | None:
    """The tightest limit of the process's groups; None without any."""
    limits = [limit for group in _groups() if (limit := _read_group(group))]
    return min(limits, key=lambda limit: limit.free_bytes, default=None)


def _groups() -> Iterator[Path]:
    """The memory group of this process and all that it lies in, of either version.

    In a container the names are often those of the host, which its own view does not have: then
    the root is the group.
    """
    try:
        memberships = _MEMBERSHIPS.read_text().splitlines()
    except OSError:  # no Linux
        return
    for membership in memberships:
        _, controllers, name = membership.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _ROOT / "memory" if controllers else _ROOT
        group = root / name.strip("/")
        yield group
        yield from (parent for parent in group.parents if parent.is_relative_to(root))


def _read_group(group: Path) -> ContainerMemory | None:
    is_version_2 = (group / "memory.max").is_file()
    names = _VERSION_2 if is_version_2 else _VERSION_1
    try:
        limit, usage = ((group / name).read_text().strip() for name in names[:2])
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        total, used = int(limit), int(usage)
        cached = sum(int(statistics.get(key, 0)) for key in names[2:])
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return ContainerMemory(total, max(0, total - max(0, used - cached)))


_VERSION_1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_active_file",
    "total_inactive_file",
)
_VERSION_2 = ("memory.max", "memory.current", "active_file", "inactive_file")
