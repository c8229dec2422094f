"""Requests a second of a key or a user: the generic cell rate algorithm (GCRA), in one Redis call.

A key may send a second's worth at once, at least one request, and then one at each interval.
"""

import asyncio
import math
from dataclasses import dataclass

import redis
from django.conf import settings

from monitoring.api.principal import Principal
from monitoring.redis.client import RedisClient, async_client

_MAX_CONNECTIONS = 16

# When all that was sent would be paid off at the key's rate, in Redis's own time.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local rate = tonumber(ARGV[1])
local burst = math.max(1, rate)
local paid_off = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local wait = paid_off + (1 - burst) / rate - now
if wait > 0.000001 then return {'0', tostring(wait)} end
redis.call('SET', KEYS[1], string.format('%.6f', paid_off + 1 / rate), 'PX',
    math.ceil((paid_off + 1 / rate - now) * 1000) + 1000)
return {tostring(math.floor((now - paid_off) * rate + burst - 1 + 0.000001)), '0'}
"""


@dataclass(frozen=True, slots=True)
class Allowance:
    """`remaining` requests may follow at once; `wait_seconds` is 0 for one that is let in."""

    limit: float
    remaining: int
    wait_seconds: float

    def headers(self) -> dict[str, str]:
        """The headers of the answer, as the IETF's draft names them."""
        wait = str(math.ceil(self.wait_seconds))
        return {
            "RateLimit-Limit": f"{self.limit:g}",
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": wait,
            **({"Retry-After": wait} if self.wait_seconds else {}),
        }


class RateLimiter:
    """Counts requests on one event loop: no thread waits for Redis."""

    def __init__(self) -> None:
        self._redis: RedisClient = None
        self._connections = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def take(self, principal: Principal) -> Allowance | None:
        """Count a request; None without Redis, which lets everybody in, or without a limit."""
        rate = principal.limits.requests_per_second
        if rate is None:
            return None
        if self._redis is None:
            self._redis = async_client()
        script = self._redis.register_script(_TAKE)
        key = f"rate:{principal.key_digest or principal.owner}"
        try:
            async with asyncio.timeout(settings.REDIS_TIMEOUT_SECONDS), self._connections:
                remaining, wait = await script(keys=[key], args=[rate])
        except (redis.RedisError, OSError):  # a time-out is an OSError
            return None
        return Allowance(limit=rate, remaining=int(float(remaining)), wait_seconds=float(wait))

    async def close(self) -> None:
        """Call it after the last request."""
        if self._redis is not None:
            await self._redis.aclose()
