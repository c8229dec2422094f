"""Which workers are alive: each keeps a short-lived key in Redis while it runs."""

import logging
import threading
from collections.abc import Callable

import redis

from monitoring.redis_client import client

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 5
_ALIVE_SECONDS = 15


def announce(
    worker: str, queues: list[str], also: Callable[[], object] = lambda: None
) -> threading.Event:
    """Say every 5 s, from a daemon thread, that `worker` serves `queues`; set the event to stop.

    `also` is called each time; it must not raise.
    """
    stop = threading.Event()
    threading.Thread(target=_beat, args=(worker, queues, also, stop), daemon=True).start()
    return stop


def count(queues: list[str]) -> dict[str, int]:
    """Live workers per queue; raises redis.RedisError when Redis is away."""
    return {
        queue: sum(1 for _ in client().scan_iter(match=f"worker:{queue}:*", count=1000))
        for queue in queues
    }


def _beat(
    worker: str, queues: list[str], also: Callable[[], object], stop: threading.Event
) -> None:
    keys = [f"worker:{queue}:{worker}" for queue in queues]
    while True:
        also()
        try:
            pipe = client().pipeline(transaction=False)
            for key in keys:
                pipe.set(key, 1, ex=_ALIVE_SECONDS)
            pipe.execute()
            if stop.wait(_BEAT_SECONDS):
                client().delete(*keys)
                return
        except redis.RedisError as exc:
            logger.warning("Worker %s cannot say that it lives: %s", worker, exc)
            if stop.wait(_BEAT_SECONDS):
                return
