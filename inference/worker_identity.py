"""Who holds a lease: `host:pid` of the process that runs the task."""

import os
import socket

from monitoring import process_liveness


def host_prefix() -> str:
    """What the identities of all processes of this host start with."""
    return f"{socket.gethostname()}:"


def current() -> str:
    """This process."""
    return f"{host_prefix()}{os.getpid()}"


def host_of(worker: str) -> str:
    """The host of a process."""
    return worker.rpartition(":")[0]


def is_dead(worker: str) -> bool:
    """True when `worker` was a process of this host and is no more; False when in doubt."""
    host, _, pid = worker.rpartition(":")
    return process_liveness.is_dead(host, int(pid)) if pid.isdecimal() else False
