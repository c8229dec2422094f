"""Values that take long to read, cached in Redis for all processes."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar, cast

import redis

from monitoring.redis.client import client

Value = TypeVar("Value")

_TIMES_AS_LONG = 10


def cached(key: str, seconds: float, read: Callable[[], Value]) -> Value:
    """What `read` gave at most so many seconds ago, in any process; it must be JSON.

    One thread of a process reads, the others wait for it. Without Redis each reads for itself.
    What takes long to read is kept for ten times as long as that took.
    """
    name = f"cache:{key}"
    with _lock(key):
        try:
            text = client().get(name)
        except redis.RedisError:
            return read()
        if text is not None:
            return cast(Value, json.loads(text))
        started = time.monotonic()
        value = read()
        kept_seconds = max(seconds, _TIMES_AS_LONG * (time.monotonic() - started))
        with contextlib.suppress(redis.RedisError):
            client().set(name, json.dumps(value), px=int(kept_seconds * 1000))
        return value


@cache
def _lock(key: str) -> threading.Lock:
    return threading.Lock()
