"""Which workers are alive: each has a heartbeat while it runs."""

import json
import logging
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import redis

from monitoring.events.events import now
from monitoring.hardware import worker_identity
from monitoring.redis import heartbeats

logger = logging.getLogger(__name__)

_GROUP = "workers"
_BEAT_SECONDS = 2.0
_ALIVE_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class Worker:
    """A Celery worker: its main process, and since when it has served its queues (ISO 8601)."""

    worker: str
    pid: int
    host: str
    queues: list[str]
    started_at: str


def announce(name: str, queues: list[str]) -> threading.Event:
    """Say every 2 s, from a daemon thread, that this process is the worker of that name.

    Set the event to stop: the worker is then gone at once.
    """
    stop = threading.Event()
    worker = Worker(name, os.getpid(), socket.gethostname(), queues, now())
    threading.Thread(target=_beat, args=(worker, stop), name="heartbeat", daemon=True).start()
    return stop


def alive() -> dict[str, list[Worker]]:
    """The live workers by queue, none for a queue without. Raises redis.RedisError.

    One that is silent is forgotten after 6 s, one of this host whose process is dead, at once.
    """
    found: defaultdict[str, list[Worker]] = defaultdict(list)
    for text in heartbeats.read(_GROUP).values():
        worker = Worker(**json.loads(text))
        if not worker_identity.is_gone(f"{worker.host}:{worker.pid}"):
            for queue in worker.queues:
                found[queue].append(worker)
    return found


def count(queues: Iterable[str]) -> dict[str, int]:
    """Live workers per queue. Raises redis.RedisError."""
    workers = alive()
    return {queue: len(workers.get(queue, [])) for queue in queues}


def silent_hosts(hosts: Iterable[str], queue: str) -> set[str]:
    """Those on which no worker of the queue is heard of any more. Raises redis.RedisError.

    Never this host, whose processes can be looked at; and none until Redis has been told for long
    enough, since it may have lost all that it was told.
    """
    others = set(hosts) - {socket.gethostname()}
    if not others or heartbeats.age(_GROUP) < _ALIVE_SECONDS:
        return set()
    return others - {worker.host for worker in alive().get(queue, [])}


def gone(identities: Iterable[str], queue: str) -> set[str]:
    """Workers of the queue whose process has ended, or whose host is silent.

    A host counts as silent after seconds, one that is cut off too. Raises redis.RedisError.
    """
    asked = set(identities)
    silent = silent_hosts({worker_identity.host_of(each) for each in asked}, queue)
    return {
        each
        for each in asked
        if worker_identity.is_gone(each) or worker_identity.host_of(each) in silent
    }


def _beat(worker: Worker, stop: threading.Event) -> None:
    # A worker that was started again under its old name must not be stopped by the old one.
    name = f"{worker.worker}:{worker.pid}"
    text = json.dumps(asdict(worker))
    while not stop.is_set():
        try:
            heartbeats.beat(_GROUP, name, text, _ALIVE_SECONDS)
        except redis.RedisError as exc:
            logger.warning("Worker %s cannot say that it lives: %s", worker.worker, exc)
        stop.wait(_BEAT_SECONDS)
    try:
        heartbeats.stop(_GROUP, name)
    except redis.RedisError as exc:
        logger.warning("Worker %s counts as alive for a moment: %s", worker.worker, exc)
