"""Circuit breakers: a cloud model that keeps failing is left alone, by all workers, for a while.

    closed ──max failures in a row──▶ open ──time is over──▶ half open ──success──▶ closed
                                       ▲                        │
                                       └─────────failure────────┘  for twice as long

Redis has the number of failures in a row, and a key that exists while the model is left alone:
while the circuit is open, or while one call tries the model again. Each opening, and each success
after failures, begins a new epoch; failures of an earlier one tell of the past.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import redis
from django.conf import settings

from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from monitoring.redis.client import client

logger = logging.getLogger(__name__)

MAX_OPEN_SECONDS = 300

# Neither faults of a request or its key, nor the rate limit, which is over at a time of its own.
_COUNTED = {ErrorCode.PROVIDER_TIMEOUT, ErrorCode.PROVIDER_UNAVAILABLE}
# Since the last failure; much longer than a circuit is ever open.
_KEPT_SECONDS = 3600
_WARN_AGAIN_SECONDS = 60.0

# The scripts have the keys `failures`, `left_alone` and `epoch`, and first the epoch of the call.
_ON_SUCCESS = """
local failures = tonumber(redis.call('GET', KEYS[1]) or 0)
local is_open = failures >= tonumber(ARGV[2])
if failures == 0 or is_open and (redis.call('GET', KEYS[3]) or '0') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('INCR', KEYS[3])
redis.call('EXPIRE', KEYS[3], ARGV[3])
return is_open and 1 or 0
"""
# Then: failures that open it, milliseconds that it is open at first and at most, its expiry.
_ON_FAILURE = """
if (redis.call('GET', KEYS[3]) or '0') ~= ARGV[1] then return 0 end
local failures, max_failures = redis.call('INCR', KEYS[1]), tonumber(ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[5])
if failures < max_failures then return 0 end
local open_ms = math.min(ARGV[3] * 2 ^ (failures - max_failures), tonumber(ARGV[4]))
redis.call('SET', KEYS[2], 'open', 'PX', open_ms)
redis.call('INCR', KEYS[3])
redis.call('EXPIRE', KEYS[3], ARGV[5])
return open_ms
"""
_ON_OTHER_FAILURE = """
if (redis.call('GET', KEYS[3]) or '0') == ARGV[1] then redis.call('DEL', KEYS[2]) end
return 0
"""

_warned_at = float("-inf")


class State(StrEnum):
    """Whether a model is asked."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class CircuitState:
    """What the API shows: failures in a row, and when an open circuit is tried again."""

    state: State = State.CLOSED
    failures: int = 0
    retry_at: datetime | None = None


class CircuitBreaker:
    """The circuit of a model for one caller: `before_call`, then how the call has ended.

    A call that is given up reports nothing. Without Redis the circuit is closed.
    """

    def __init__(self, model: RegisteredModel) -> None:
        self._name = model.name
        self._can_fall_back = model.provider != RegisteredModel.Provider.EMBEDDING
        self._keys = _keys(model)
        self._epoch: str | None = None

    def before_call(self) -> None:
        """One round trip, without a write, while the circuit is closed.

        Raises InferenceError PROVIDER_UNAVAILABLE while the model is left alone.
        """
        self._epoch, wait_ms = None, 0
        failures_key, left_alone_key, epoch_key = self._keys
        with _without_redis(self._name):
            failures, epoch = client().mget(failures_key, epoch_key)
            is_open = int(failures or 0) >= settings.CIRCUIT_FAILURES
            if is_open and not client().set(left_alone_key, "try", nx=True, px=_open_ms()):
                wait_ms = max(1, client().pttl(left_alone_key))
            else:
                self._epoch = epoch or "0"
        if wait_ms:
            advice = ", or name fallback_models" if self._can_fall_back else ""
            raise InferenceError(
                f"The model {self._name} keeps failing and is left alone for "
                f"{wait_ms / 1000:.1f} s: try again after that{advice}.",
                ErrorCode.PROVIDER_UNAVAILABLE,
                retryable=True,
                retry_after=wait_ms / 1000,
            )

    def on_success(self) -> None:
        """The provider has answered."""
        if self._report(_ON_SUCCESS, settings.CIRCUIT_FAILURES, _KEPT_SECONDS):
            logger.info("Model %s answers again: its circuit is closed", self._name)

    def on_failure(self, failure: InferenceError, *, is_of_model: bool = True) -> None:
        """The call has failed; a failure that says nothing of the model lets another one try."""
        if not is_of_model or failure.code not in _COUNTED:
            self._report(_ON_OTHER_FAILURE)
            return
        limits = (settings.CIRCUIT_FAILURES, _open_ms(), MAX_OPEN_SECONDS * 1000, _KEPT_SECONDS)
        if open_ms := self._report(_ON_FAILURE, *limits):
            message = "Model %s keeps failing (%s): its circuit is open for %g s"
            logger.warning(message, self._name, failure.code, open_ms / 1000)

    def _report(self, script: str, *args: object) -> int:
        """0 for a call that was refused, or while Redis is away."""
        answer = 0
        if self._epoch is not None:
            with _without_redis(self._name):
                answer = int(client().eval(script, 3, *self._keys, self._epoch, *args))
        return answer


def states(models: Iterable[RegisteredModel]) -> dict[str, CircuitState]:
    """The circuits by model name, in one round trip; models that run here have none."""
    cloud = [model for model in models if model.is_remote]
    found = {model.name: CircuitState() for model in cloud}
    if not cloud:
        return found
    with _without_redis(cloud[0].name):
        pipe = client().pipeline(transaction=False)
        pipe.time()
        for model in cloud:
            failures_key, left_alone_key, _ = _keys(model)
            pipe.mget(failures_key, left_alone_key).pttl(left_alone_key)
        (seconds, microseconds), *rows = pipe.execute()
        for model, (text, left_alone), ttl_ms in zip(cloud, rows[::2], rows[1::2], strict=True):
            failures = int(text or 0)
            if failures < settings.CIRCUIT_FAILURES:
                found[model.name] = CircuitState(failures=failures)
            elif left_alone == "open" and ttl_ms > 0:
                retry_at = seconds + microseconds / 1e6 + ttl_ms / 1000
                retry_at = datetime.fromtimestamp(retry_at, UTC)
                found[model.name] = CircuitState(State.OPEN, failures, retry_at)
            else:
                found[model.name] = CircuitState(State.HALF_OPEN, failures)
    return found


def are_open() -> dict[str, bool]:
    """Each model that has a circuit, and whether that is not closed."""
    providers = [*RegisteredModel.CLOUD_PROVIDERS, RegisteredModel.Provider.EMBEDDING]
    models = RegisteredModel.objects.filter(provider__in=providers)
    found = states(models.only("name", "provider", "config"))
    return {name: circuit.state != State.CLOSED for name, circuit in found.items()}


@contextmanager
def _without_redis(name: str) -> Iterator[None]:
    """Go on behind the block when Redis is away, with a line a minute: each call comes here."""
    global _warned_at
    try:
        yield
    except redis.RedisError as exc:
        if time.monotonic() - _warned_at > _WARN_AGAIN_SECONDS:
            _warned_at = time.monotonic()
            logger.warning("The circuit of model %s is not known, no Redis: %s", name, exc)


def _open_ms() -> int:
    """How long a circuit is open at first, and how long one try keeps other calls out."""
    return round(settings.CIRCUIT_OPEN_SECONDS * 1000)


def _keys(model: RegisteredModel) -> tuple[str, str, str]:
    """By the row, not by the name: a model that is registered anew begins anew."""
    prefix = f"circuit:{model.pk}"
    return f"{prefix}:failures", f"{prefix}:left_alone", f"{prefix}:epoch"
