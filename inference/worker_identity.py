"""Who holds a lease: `host:pid` of the process that runs the task."""

import os
import socket
from pathlib import Path


def host_prefix() -> str:
    """What the identities of all processes of this host start with."""
    return f"{socket.gethostname()}:"


def current() -> str:
    """This process."""
    return f"{host_prefix()}{os.getpid()}"


def is_dead(worker: str) -> bool:
    """True when `worker` was a process of this host and is no more; False when in doubt."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: str) -> bool:
    """Killed, but its parent has not looked yet: it keeps its number and will never run again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False  # no Linux, or gone this very moment: the next look tells
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")
