"""Whether a process of this host still lives; of other hosts nothing is known."""

import os
import socket
from pathlib import Path


def is_dead(host: str, pid: int) -> bool:
    """True when `pid` was a process of this host and is no more; False when in doubt."""
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Killed, but its parent has not looked yet: it keeps its number and will never run again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False  # no Linux, or gone this very moment: the next look tells
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")
