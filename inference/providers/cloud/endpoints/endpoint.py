"""One server that answers for a model, as this process sees it."""

import time
from enum import StrEnum
from hashlib import blake2b
from math import log
from typing import NamedTuple

from django.conf import settings

from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.providers.cloud.endpoints.engine_load import BatchGate
from inference.providers.cloud.endpoints.latency import Latency
from inference.providers.cloud.endpoints.limit import AdaptiveLimit

# Failures in a row after which nothing is asked there for a while.
_MAX_FAILURES = 3
# Faults of the server, or of how it is registered, that another one need not have.
_FAULTS = {
    ErrorCode.AUTHENTICATION_FAILED,
    ErrorCode.PROVIDER_ERROR,
    ErrorCode.PROVIDER_TIMEOUT,
    ErrorCode.PROVIDER_UNAVAILABLE,
}
_MAX_REST_SECONDS = 60.0


class Health(StrEnum):
    """Whether an endpoint is asked: not while it is dead, or rests since it has sent calls away."""

    HEALTHY = "healthy"
    RATE_LIMITED = "rate_limited"
    DEAD = "dead"


class EndpointState(NamedTuple):
    """What is shown of an endpoint: calls under way and how many may be, seconds an answer takes.

    `limit`: None where there is none. `waiting` and `usage` are the engine's own figures.
    """

    health: str
    in_flight: int
    limit: int | None
    latency: float | None
    waiting: int | None = None
    usage: float | None = None


class Endpoint:
    """Its health, its calls and its limit. All of it belongs to the event loop.

    `model` is the model as it is asked here.
    """

    def __init__(self, name: str, model: RegisteredModel, *, is_only: bool) -> None:
        """The only endpoint of a model has no limit but that of the model.

        Less than what comes would help no other, and what it refuses is tried again anyway.
        """
        self.name = name
        self.model = model
        self.weight = float(model.config.get("weight", 1.0))
        most = model.config.get("max_concurrency", settings.MAX_CLOUD_CONCURRENCY)
        self.limit = None if is_only else AdaptiveLimit(most)
        gate = model.config.get("batch_gate")
        self.gate = None if gate is None else BatchGate(**gate)
        self.latency = Latency()
        self.calls: dict[Call, None] = {}
        self.num_batch_calls = 0
        self.is_dead = False
        self.num_deaths = 0
        self._num_failures = 0
        self._rests_until = float("-inf")
        self._idle_since = time.monotonic()
        self._unheard: dict[Call, None] = {}

    @property
    def health(self) -> Health:
        if self.is_dead:
            return Health.DEAD
        is_resting = time.monotonic() < self._rests_until
        return Health.RATE_LIMITED if is_resting else Health.HEALTHY

    def has_room(self, *, is_batch: bool) -> bool:
        """Whether one more call may begin."""
        if self.limit is not None and len(self.calls) >= int(self.limit):
            return False
        return not is_batch or self.gate is None or self.num_batch_calls < self.gate.limit

    def seconds(self, num_deltas: float) -> float | None:
        """What an answer of so many deltas takes here; None before anything is known."""
        oldest = next(iter(self._unheard), None)
        waited = 0.0 if oldest is None else time.monotonic() - oldest.began_at
        return self.latency.seconds(num_deltas, waited)

    @property
    def idle_seconds(self) -> float:
        """For how long there was no call."""
        return 0.0 if self.calls else time.monotonic() - self._idle_since

    def affinity(self, key: str) -> float:
        """How much it is this one's turn to get what has the key: rendezvous hashing, weighted."""
        digest = blake2b(f"{self.name}\0{key}".encode(), digest_size=8).digest()
        return -self.weight / log((int.from_bytes(digest) + 1) / (2**64 + 1))

    def begin(self, *, is_batch: bool) -> "Call":
        """A call that begins now; whoever makes it has to `leave`."""
        call = Call(self, is_batch=is_batch)
        self.calls[call] = self._unheard[call] = None
        self.num_batch_calls += is_batch
        return call

    def leave(self, call: "Call") -> None:
        """The call is over, in whatever way."""
        self._unheard.pop(call, None)
        del self.calls[call]
        self.num_batch_calls -= call.is_batch
        self._idle_since = time.monotonic()

    def on_first(self, call: "Call") -> None:
        self._unheard.pop(call, None)
        self.latency.heard_first(call.first_at - call.began_at)

    def on_success(self, call: "Call") -> None:
        self._num_failures = self.num_deaths = 0
        now = time.monotonic()
        first, others = call.first_at - call.began_at, now - call.first_at
        worked_part = self.latency.heard_all(first, others, call.num_deltas - 1)
        if self.limit is not None:
            self.limit.on_success(call.began_at, len(self.calls), worked_part)

    def on_failure(self, call: "Call", failure: InferenceError) -> None:
        """What a call failed with; it dies of faults that follow one another."""
        is_limited = failure.code == ErrorCode.RATE_LIMITED
        if self.limit is not None and (is_limited or failure.code in _FAULTS):
            self.limit.on_failure(call.began_at)
        if is_limited:
            seconds = min(failure.retry_after or 0.0, _MAX_REST_SECONDS)
            self._rests_until = max(self._rests_until, time.monotonic() + seconds)
        elif failure.code in _FAULTS:
            self._num_failures += 1
            if self._num_failures >= _MAX_FAILURES and not self.is_dead:
                self.is_dead = True
                self.num_deaths += 1

    def revive(self) -> None:
        """Ask it again: the next failure in a row is its death."""
        self.is_dead = False
        if self.limit is not None:
            self.limit.start_again()

    def state(self, num_deltas: float) -> EndpointState:
        """How it is, for a usual answer of so many deltas."""
        load = self.gate.load if self.gate is not None else None
        return EndpointState(
            health=self.health,
            in_flight=len(self.calls),
            limit=self.model.config.get("max_concurrency")
            if self.limit is None
            else int(self.limit),
            latency=self.seconds(num_deltas),
            waiting=load.num_waiting if load else None,
            usage=load.usage if load else None,
        )


class Call:
    """A call of an endpoint that is under way (times are monotonic)."""

    __slots__ = ("began_at", "endpoint", "first_at", "is_batch", "num_deltas")

    def __init__(self, endpoint: Endpoint, *, is_batch: bool) -> None:
        self.endpoint = endpoint
        self.is_batch = is_batch
        self.began_at = self.first_at = time.monotonic()
        self.num_deltas = 0

    def heard(self) -> None:
        """A delta of the answer has come."""
        self.num_deltas += 1
        if self.num_deltas == 1:
            self.first_at = time.monotonic()
            self.endpoint.on_first(self)
