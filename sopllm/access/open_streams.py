"""Open streams of an owner: Server-Sent Events and WebSockets, counted in Redis.

Each has a place with a lease, so that a web process that is killed takes none for longer than that.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import redis

from inference.api.deferred_response import InThread
from monitoring.api.errors import LimitReached
from monitoring.api.principal import Principal
from monitoring.redis.client import client

LEASE_SECONDS = 45
_RENEW_SECONDS = 15.0
# One of the owner's streams may end soon: a guess.
_RETRY_AFTER_SECONDS = 5

# Places by the end of their leases, in Redis's own time. Gives whether a place could be taken, or
# renewed, and how many there are.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local num_open = redis.call('ZCARD', KEYS[1])
if num_open >= tonumber(ARGV[2]) then return {0, num_open} end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {1, num_open}
"""


@contextlib.asynccontextmanager
async def open_place(principal: Principal | None, in_thread: InThread) -> AsyncIterator[None]:
    """A place among the owner's streams for as long as one is open. Raises LimitReached.

    Without Redis, or without a limit, everybody gets one.
    """
    limit = principal.limits.max_open_streams if principal else None
    if principal is None or limit is None:
        yield
        return
    place = uuid.uuid4().hex
    if not await in_thread(_take, principal.owner, place, limit):
        message = f"You have {limit} open streams, as many as you may: close one of them."
        raise LimitReached(message, _RETRY_AFTER_SECONDS, "max_open_streams")
    renewing = asyncio.ensure_future(_renew(principal.owner, place, in_thread))
    try:
        yield
    finally:
        renewing.cancel()
        await in_thread(_give_back, principal.owner, place)


def num_open(owner: str) -> int | None:
    """How many streams of the owner's limited keys are open; None without Redis."""
    try:
        return _call(owner, "", 0)[1]
    except redis.RedisError:
        return None


async def _renew(owner: str, place: str, in_thread: InThread) -> None:
    while True:
        await asyncio.sleep(_RENEW_SECONDS)
        # Also where Redis has lost it, and others may have come meanwhile.
        await in_thread(_take, owner, place, float("inf"))


def _take(owner: str, place: str, limit: float) -> bool:
    try:
        return bool(_call(owner, place, limit)[0])
    except redis.RedisError:
        return True


def _give_back(owner: str, place: str) -> None:
    with contextlib.suppress(redis.RedisError):
        client().zrem(_key(owner), place)


def _call(owner: str, place: str, limit: float) -> tuple[int, int]:
    taken, num_open = client().register_script(_TAKE)(
        keys=[_key(owner)], args=[place, limit, LEASE_SECONDS]
    )
    return taken, num_open


def _key(owner: str) -> str:
    return f"open_streams:{owner}"
