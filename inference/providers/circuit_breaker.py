"""Leaves a cloud model alone that keeps failing: one state a model, shared by all workers in Redis.

    closed ──so many failures in a row──▶ open ──time is over──▶ half open ──success──▶ closed
                                           ▲                        │
                                           └─────────failure────────┘  for twice as long

While it is half open one call is let through to try; where none reports, another one after a while.
A success while it is closed starts the count anew. Each of these changes begins a new generation:
a failure counts only in the generation that its call began in, and so does the success of a try;
whatever comes later tells of the past.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import redis
from django.conf import settings

from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from monitoring.redis.client import client

logger = logging.getLogger(__name__)

MAX_OPEN_SECONDS = 300

# Neither the faults of one request, nor the rate limit, which is over at a time of its own.
_COUNTED = {
    ErrorCode.AUTHENTICATION_FAILED,
    ErrorCode.PROVIDER_TIMEOUT,
    ErrorCode.PROVIDER_UNAVAILABLE,
}
# Since the last failure; much longer than a circuit is ever open.
_KEPT_SECONDS = 3600
_WARN_AGAIN_SECONDS = 60.0

# Times are in milliseconds, by the clock of Redis, which all workers share.
_PRELUDE = """
local function field(key, name) return tonumber(redis.call('HGET', key, name) or 0) end
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""
# For how long one try keeps others out → the generation, and how long to wait.
_ENTER = """
local key, now = KEYS[1], now_ms()
local generation, retry_at = field(key, 'generation'), field(key, 'retry_at')
local wait = retry_at > 0 and math.max(retry_at, field(key, 'try_until')) - now or 0
if wait > 0 then return {generation, wait} end
if retry_at > 0 then redis.call('HSET', key, 'try_until', now + ARGV[1]) end
return {generation, 0}
"""
# The generation, and for how long to keep the next one → whether this has closed the circuit.
_SUCCEED = """
local key = KEYS[1]
local generation, is_open = field(key, 'generation'), field(key, 'retry_at') > 0
if field(key, 'failures') == 0 then return 0 end
if is_open and generation ~= tonumber(ARGV[1]) then return 0 end
redis.call('DEL', key)
redis.call('HSET', key, 'generation', generation + 1)
redis.call('EXPIRE', key, ARGV[2])
return is_open and 1 or 0
"""
# The generation, for how long to keep this, how many failures open a circuit, for how long at
# first, and at most → for how long it is open from now on, or 0.
_FAIL = """
local key = KEYS[1]
if field(key, 'generation') ~= tonumber(ARGV[1]) then return 0 end
local failures, open_ms = redis.call('HINCRBY', key, 'failures', 1), 0
if field(key, 'retry_at') > 0 or failures >= tonumber(ARGV[3]) then
  local openings = redis.call('HINCRBY', key, 'openings', 1)
  open_ms = math.min(ARGV[4] * 2 ^ (openings - 1), tonumber(ARGV[5]))
  redis.call('HINCRBY', key, 'generation', 1)
  redis.call('HSET', key, 'retry_at', now_ms() + open_ms)
end
redis.call('EXPIRE', key, ARGV[2])
return open_ms
"""
# The generation: its call has not told whether the model is well, so another one may try.
_LEAVE = """
local key = KEYS[1]
if field(key, 'generation') == tonumber(ARGV[1]) and field(key, 'retry_at') > 0 then
  redis.call('HSET', key, 'try_until', 0)
end
return 0
"""
# → the time, and of each circuit its failures and when it is tried again.
_READ = """
local states = {now_ms()}
for _, key in ipairs(KEYS) do
  table.insert(states, {field(key, 'failures'), field(key, 'retry_at')})
end
return states
"""

_warned_at = float("-inf")


class State(StrEnum):
    """Whether a model is asked."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class CircuitState:
    """What the API shows: failures in a row, and when an open one is tried again."""

    state: State = State.CLOSED
    failures: int = 0
    retry_at: datetime | None = None


class Circuit:
    """A model's circuit as one caller uses it: `check` before each call, then how that has ended.

    A call that is given up reports nothing. Without Redis the circuit is closed.
    """

    def __init__(self, model: RegisteredModel) -> None:
        self._name = model.name
        self._can_fall_back = model.provider != RegisteredModel.Provider.EMBEDDING
        self._key = _key(model)
        self._generation: int | None = None

    def check(self) -> None:
        """Raises InferenceError while the model is to be left alone."""
        self._generation = None
        wait_ms = 0
        with _doing_without_redis(self._name):
            self._generation, wait_ms = self._enter()
        if wait_ms:
            self._generation = None
            raise self._refusal(wait_ms / 1000)

    def succeeded(self) -> None:
        """The call that was let through has brought an answer."""
        if self._tell(_SUCCEED, _KEPT_SECONDS):
            logger.info("Model %s answers again: its circuit is closed", self._name)

    def failed(self, failure: InferenceError) -> None:
        """The call that was let through has failed."""
        if failure.code not in _COUNTED:
            self._tell(_LEAVE)
            return
        limits = (settings.CIRCUIT_FAILURES, _open_ms(), MAX_OPEN_SECONDS * 1000)
        if open_ms := self._tell(_FAIL, _KEPT_SECONDS, *limits):
            message = "Model %s keeps failing (%s): its circuit is open for %g s"
            logger.warning(message, self._name, failure.code, open_ms / 1000)

    def _enter(self) -> tuple[int, int]:
        """The generation, and how long to wait; one round trip, without a write, while closed."""
        generation, retry_at = client().hmget(self._key, "generation", "retry_at")
        if not int(retry_at or 0):
            return int(generation or 0), 0
        current, wait_ms = _evaluate(_ENTER, [self._key], _open_ms())
        return current, wait_ms

    def _tell(self, script: str, *args: object) -> int:
        """0 for a call that was not let through by this, or while Redis is away."""
        told = 0
        if self._generation is not None:
            with _doing_without_redis(self._name):
                told = int(_evaluate(script, [self._key], self._generation, *args))
        return told

    def _refusal(self, seconds: float) -> InferenceError:
        advice = ", or name fallback_models" if self._can_fall_back else ""
        return InferenceError(
            f"The model {self._name} keeps failing and is left alone for {seconds:.1f} s: "
            f"try again after that{advice}.",
            ErrorCode.PROVIDER_UNAVAILABLE,
            retryable=True,
            retry_after=seconds,
        )


def states(models: Iterable[RegisteredModel]) -> dict[str, CircuitState]:
    """The circuits by the names of the models, in one round trip; those that run here have none."""
    cloud = [model for model in models if model.is_remote]
    found = {model.name: CircuitState() for model in cloud}
    if cloud:
        with _doing_without_redis(cloud[0].name):
            now, *rows = _evaluate(_READ, [_key(model) for model in cloud])
            for model, (failures, retry_at) in zip(cloud, rows, strict=True):
                found[model.name] = _state(failures, retry_at, now)
    return found


def are_open() -> dict[str, bool]:
    """Each model that has a circuit, and whether it is left alone, or tried only."""
    providers = [*RegisteredModel.CLOUD_PROVIDERS, RegisteredModel.Provider.EMBEDDING]
    models = RegisteredModel.objects.filter(provider__in=providers)
    found = states(models.only("name", "provider", "config"))
    return {name: circuit.state != State.CLOSED for name, circuit in found.items()}


def _state(failures: int, retry_at: int, now: int) -> CircuitState:
    if not retry_at:
        return CircuitState(failures=failures)
    if retry_at <= now:
        return CircuitState(State.HALF_OPEN, failures)
    return CircuitState(State.OPEN, failures, datetime.fromtimestamp(retry_at / 1000, UTC))


def _evaluate(script: str, keys: list[str], *args: object) -> Any:
    return client().eval(_PRELUDE + script, len(keys), *keys, *args)


@contextmanager
def _doing_without_redis(name: str) -> Iterator[None]:
    """Goes on behind the block when Redis is away, with a line a minute: each call comes here."""
    global _warned_at
    try:
        yield
    except redis.RedisError as exc:
        if time.monotonic() - _warned_at > _WARN_AGAIN_SECONDS:
            _warned_at = time.monotonic()
            logger.warning("The circuit of model %s is not known, no Redis: %s", name, exc)


def _open_ms() -> int:
    """How long a circuit is open at first, and how long one try may keep others out."""
    return round(settings.CIRCUIT_OPEN_SECONDS * 1000)


def _key(model: RegisteredModel) -> str:
    """By the row, not by the name: a model that is registered anew begins anew."""
    return f"circuit:{model.pk}"
