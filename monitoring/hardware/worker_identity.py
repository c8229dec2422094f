"""Which process holds a lease: `host:pid:start time`, so that a reused process number is no doubt.

The start time is in clock ticks since the boot, as Linux counts it: setting the clock does not
change it. Rows of earlier versions have `host:pid`.
"""

import os
import socket
from functools import cache
from pathlib import Path


@cache
def current() -> str:
    """This process."""
    return of_pid(os.getpid())


os.register_at_fork(after_in_child=current.cache_clear)


def of_pid(pid: int) -> str:
    """A living process of this host."""
    _, start_time = _state_and_start_time(pid)
    return f"{prefix_of(pid)}{start_time}"


def prefix_of(pid: int) -> str:
    """What the identities of all processes of this host start with that had this number."""
    return f"{socket.gethostname()}:{pid}:"


def host_of(identity: str) -> str:
    """The host of the process."""
    return identity.partition(":")[0]


def is_gone(identity: str) -> bool:
    """True when it was a process of this host and is no more; False when in doubt."""
    host, _, process = identity.partition(":")
    pid, _, start_time = process.partition(":")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    state, actual_start_time = _state_and_start_time(int(pid))
    # A zombie keeps its number until its parent has looked, and will never run again.
    is_another = bool(start_time) and actual_start_time not in ("", start_time)
    return state in ("Z", "X") or is_another


def _state_and_start_time(pid: int) -> tuple[str, str]:
    """State (one letter) and start time of a process; empty where /proc does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", ""  # not Linux, or the process has ended this very moment
    fields = stat.rpartition(")")[2].split()
    return fields[0], fields[19]
