"""Who holds a lease: `host:pid` of the process that runs the task."""

import os
import socket
from collections.abc import Iterable
from typing import Any, TypeVar

from django.db.models import QuerySet

from monitoring.hardware import processes, workers

Rows = TypeVar("Rows", bound="QuerySet[Any]")


def host_prefix() -> str:
    """What the identities of all processes of this host start with."""
    return f"{socket.gethostname()}:"


def current() -> str:
    """This process."""
    return f"{host_prefix()}{os.getpid()}"


def is_dead(worker: str) -> bool:
    """True when `worker` was a process of this host and is no more; False when in doubt."""
    host, _, pid = worker.rpartition(":")
    return processes.is_dead(host, int(pid)) if pid.isdecimal() else False


def of_dead(rows: Rows) -> Rows:
    """Those of the rows whose `worker` was a process of this host and is no more."""
    here = rows.filter(worker__startswith=host_prefix())
    dead = [worker for worker in set(here.values_list("worker", flat=True)) if is_dead(worker)]
    return here.filter(worker__in=dead)


def gone(identities: Iterable[str], queue: str) -> set[str]:
    """Workers of the queue that are dead, or whose host is silent. Raises redis.RedisError.

    It takes seconds until a host counts as silent, and one that is cut off does so, too.
    """
    asked = set(identities)
    silent = workers.silent_hosts({_host(worker) for worker in asked}, queue)
    return {worker for worker in asked if is_dead(worker) or _host(worker) in silent}


def _host(worker: str) -> str:
    return worker.rpartition(":")[0]
