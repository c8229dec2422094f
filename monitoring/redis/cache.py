"""Values that are costly to read and asked for often: kept in Redis for all processes."""

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
    """What `read` gave at most so long ago, in any process; it must be JSON.

    One thread of a process reads, the others wait for it. Without Redis each reads for itself.
    What takes long to read is kept for ten times as long as that took.
    """
    with _lock(key):
        try:
            text = client().get(_cache_key(key))
        except redis.RedisError:
            return read()
        if text is not None:
            return cast(Value, json.loads(text))
        started = time.monotonic()
        value = read()
        kept_seconds = max(seconds, _TIMES_AS_LONG * (time.monotonic() - started))
        with contextlib.suppress(redis.RedisError):
            client().set(_cache_key(key), json.dumps(value), px=int(kept_seconds * 1000))
        return value


def _cache_key(key: str) -> str:
    return f"cache:{key}"


@cache
def _lock(key: str) -> threading.Lock:
    return threading.Lock()
