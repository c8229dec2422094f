"""The endpoints of a model, and which of them gets the next call.

A call goes where its conversation, or the beginning of its prompt, was read before, unless that
endpoint has more to do than the others, or is slower; else to the one that answers soonest. An
endpoint whose calls fail in a row is dead: it is left alone, and probed at growing intervals.
All of this is one process's view, on its event loop.
"""

import asyncio
import heapq
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urljoin

import httpx

from inference.errors import InferenceError
from inference.models import MAX_PRIORITY, RegisteredModel
from inference.providers import hosts
from inference.providers.api_keys import api_key_of
from inference.providers.base import GenerationRequest
from inference.providers.cloud import direct
from inference.providers.cloud.endpoints import engine_load
from inference.providers.cloud.endpoints.config import models_by_endpoint
from inference.providers.cloud.endpoints.endpoint import Call, Endpoint, EndpointState, Health
from inference.providers.cloud.endpoints.engine_load import EngineLoad
from inference.retries import backoff_seconds

logger = logging.getLogger(__name__)

# Tasks of a lower priority than that of a task which names none are batch work.
_BATCH_BELOW = 1.0
# Nothing has so high a priority.
NONE_MAY = MAX_PRIORITY + 1.0

# An endpoint gets what it has in its cache up to so much more than its share of the calls,
# and while an answer takes up to so much longer there than elsewhere.
_MAX_SHARE = 1.25
_MAX_TIMES_SLOWER = 2.0
_MAX_SECONDS_SLOWER = 0.25
# A slow endpoint that is not asked may have recovered: after so long it counts as a third as slow.
_FORGET_SECONDS = 10.0
# The beginning of a prompt, in characters, that says where it goes.
_BEGINNING_CHARS = 1024

# A part more is claimed than the endpoints take: a call begins when another one ends, and not after
# that end is stored and a task is claimed.
_CLAIMED = 1.25

_FIRST_PROBE_SECONDS = 0.5
_MAX_PROBE_SECONDS = 2.0
_PROBE_LIMIT_SECONDS = 5.0
_READ_LOAD_SECONDS = 1.0
# What nobody wants to call any more is neither probed nor read.
_WANTED_SECONDS = 60.0
# Deltas of an answer, as long as none has come.
_FIRST_NUM_DELTAS = 32.0
_WEIGHT_OF_ANSWER = 0.1


@dataclass(order=True, slots=True)
class _Waiting:
    """A call that waits for an endpoint with room for it; the most urgent comes first."""

    rank: tuple[float, int]
    key: str = field(compare=False)
    is_batch: bool = field(compare=False)
    failed: set[Endpoint] = field(compare=False)
    begun: "asyncio.Future[Call]" = field(compare=False)


def is_batch(priority: float) -> bool:
    """Whether a task of that priority fills what others leave."""
    return priority < _BATCH_BELOW


class EndpointPool:
    """The endpoints of one model; `on_room` is called when more calls may begin than before."""

    def __init__(self, model: RegisteredModel, on_room: Callable[[], None]) -> None:
        self.max_concurrency: int | None = model.config.get("max_concurrency")
        there = models_by_endpoint(model)
        self.endpoints = [
            Endpoint(name, model, is_only=len(there) == 1) for name, model in there.items()
        ]
        self._on_room = on_room
        self._waiting: list[_Waiting] = []
        self._numbers = count()
        self._num_deltas = _FIRST_NUM_DELTAS
        self._wanted_at = float("-inf")
        # By what they look after: an endpoint that is dead, or the gates.
        self._watches: dict[object, asyncio.Task[None]] = {}

    def lowest_priority(self, num_running: int, num_batch: int) -> float:
        """What a task must have at least to be claimed, with so many that run; NONE_MAY: no task.

        Of all threads.
        """
        self._wanted_at = time.monotonic()
        limits = [each.limit for each in self._usable()]
        most = sum(int(limit) for limit in limits if limit is not None) or math.inf
        if num_running >= min(most * _CLAIMED, self.max_concurrency or math.inf):
            return NONE_MAY
        gates = [each.gate for each in self._usable() if each.gate is not None]
        if gates and num_batch >= sum(gate.limit for gate in gates):
            return _BATCH_BELOW
        return 0.0

    @asynccontextmanager
    async def call(
        self, request: GenerationRequest, failed: Set[Endpoint] = frozenset()
    ) -> AsyncIterator[Call]:
        """The place of a call at an endpoint that has not failed it yet, once there is room."""
        self._wanted_at = time.monotonic()
        key, low = affinity_key(request), is_batch(request.priority)
        self.keep_watch()
        endpoint = None if self._waiting else self._choose(key, failed, is_batch=low)
        if endpoint is not None:
            call = endpoint.begin(is_batch=low)
        else:
            begun = asyncio.get_running_loop().create_future()
            rank = (-request.priority, next(self._numbers))
            heapq.heappush(self._waiting, _Waiting(rank, key, low, set(failed), begun))
            self._begin_waiting()
            try:
                call = await begun
            except asyncio.CancelledError:
                if begun.done() and not begun.cancelled():
                    self._leave(begun.result())
                raise
        try:
            yield call
        finally:
            self._leave(call)

    def keep_watch(self) -> None:
        """Have the gates know the loads of the engines, as long as anybody wants to call them."""
        if "loads" not in self._watches and any(each.gate for each in self.endpoints):
            self._watch("loads", self._read_loads())

    def on_success(self, call: Call) -> None:
        """The answer of a call is complete."""
        self._num_deltas += _WEIGHT_OF_ANSWER * (call.num_deltas - self._num_deltas)
        call.endpoint.on_success(call)

    def on_failure(self, call: Call, failure: InferenceError) -> None:
        """A call has failed; its endpoint is watched if it is dead now."""
        endpoint = call.endpoint
        endpoint.on_failure(call, failure)
        if endpoint.is_dead and len(self.endpoints) == 1:
            endpoint.revive()  # the circuit of the model is there for that
        elif endpoint.is_dead and endpoint not in self._watches:
            message = "Endpoint %s of model %s is left alone, its calls fail: %s"
            logger.warning(message, endpoint.name, endpoint.model.name, failure.code)
            self._watch(endpoint, self._probe(endpoint))

    def states(self) -> dict[str, EndpointState]:
        """How the endpoints are, by name."""
        return {each.name: each.state(self._num_deltas) for each in self.endpoints}

    def _usable(self) -> list[Endpoint]:
        """The healthy ones; all, where none is: one of them may be so again."""
        healthy = [each for each in self.endpoints if each.health == Health.HEALTHY]
        return healthy or self.endpoints

    def _choose(self, key: str, failed: Set[Endpoint], *, is_batch: bool) -> Endpoint | None:
        """The endpoint that gets a call; None while those that may get it have no room."""
        others = [each for each in self.endpoints if each not in failed]
        healthy = [each for each in others if each.health == Health.HEALTHY]
        if not healthy:
            return min(others, key=lambda each: each.num_deaths)
        having_room = [each for each in healthy if each.has_room(is_batch=is_batch)]
        if len(having_room) <= 1:
            return having_room[0] if having_room else None
        known = {each: each.seconds(self._num_deltas) for each in having_room}
        fastest = min((each for each in known.values() if each is not None), default=1.0)
        seconds: dict[Endpoint, float] = {}
        for each, took in known.items():
            remembered = math.exp(-each.idle_seconds / _FORGET_SECONDS)
            seconds[each] = fastest + ((took or fastest) - fastest) * remembered
        preferred = max(healthy, key=lambda each: each.affinity(key))
        num_calls = sum(len(each.calls) for each in healthy) + 1
        share = num_calls * preferred.weight / sum(each.weight for each in healthy)
        if (
            preferred in seconds
            and len(preferred.calls) < math.ceil(share * _MAX_SHARE)
            and seconds[preferred] <= fastest * _MAX_TIMES_SLOWER + _MAX_SECONDS_SLOWER
        ):
            return preferred
        return min(
            having_room, key=lambda each: (len(each.calls) + 1) * seconds[each] / each.weight
        )

    def _leave(self, call: Call) -> None:
        call.endpoint.leave(call)
        self._begin_waiting()

    def _begin_waiting(self) -> None:
        """Begin the calls that wait and for which there is room now, the most urgent first."""
        kept: list[_Waiting] = []
        while self._waiting:
            waiting = heapq.heappop(self._waiting)
            if waiting.begun.cancelled():
                continue
            endpoint = self._choose(waiting.key, waiting.failed, is_batch=waiting.is_batch)
            if endpoint is not None:
                waiting.begun.set_result(endpoint.begin(is_batch=waiting.is_batch))
                continue
            kept.append(waiting)
            if not any(each.has_room(is_batch=False) for each in self.endpoints):
                break
        for each in kept:
            heapq.heappush(self._waiting, each)

    def _watch(self, what: object, watch: Coroutine[Any, Any, None]) -> None:
        self._watches[what] = task = asyncio.create_task(watch)
        task.add_done_callback(lambda _: self._watches.pop(what, None))

    @property
    def has_healthy(self) -> bool:
        """Whether one of several endpoints is healthy: a failure of another one is its own."""
        return len(self.endpoints) > 1 and any(
            each.health == Health.HEALTHY for each in self.endpoints
        )

    @property
    def is_wanted(self) -> bool:
        """Whether it has been asked of late."""
        is_called = any(each.calls for each in self.endpoints)
        return is_called or time.monotonic() < self._wanted_at + _WANTED_SECONDS

    async def _probe(self, endpoint: Endpoint) -> None:
        """Ask a dead endpoint for its list of models until it answers, or nobody wants it."""
        url = f"{endpoint.model.config['base_url'].rstrip('/')}/models"
        for num_probes in count(endpoint.num_deaths):
            pause = backoff_seconds(num_probes, _FIRST_PROBE_SECONDS, _MAX_PROBE_SECONDS)
            await asyncio.sleep(pause)
            if not self.is_wanted:
                break
            status, _ = await _get(endpoint, url)
            if status is not None and status < 500 and status not in (401, 403):
                break
        endpoint.revive()
        for waiting in self._waiting:
            waiting.failed.discard(endpoint)  # it has failed them while it was dead
        logger.info("Endpoint %s of model %s is asked again", endpoint.name, endpoint.model.name)
        self._begin_waiting()
        self._on_room()

    async def _read_loads(self) -> None:
        """Keep the gates up to date while the model is wanted."""
        while self.is_wanted:
            gated = [(each, each.gate) for each in self.endpoints if each.gate is not None]
            loads = await asyncio.gather(*(_load_of(endpoint) for endpoint, _ in gated))
            has_grown = [
                gate.read(load, endpoint.num_batch_calls)
                for (endpoint, gate), load in zip(gated, loads, strict=True)
            ]
            if any(has_grown):
                self._begin_waiting()
                self._on_room()
            await asyncio.sleep(_READ_LOAD_SECONDS)


def affinity_key(request: GenerationRequest) -> str:
    """What has been read before if this has: the conversation, or a prompt that begins like this.

    Of one owner, as prefixes are shared within one owner.
    """
    if request.conversation_id is not None:
        return request.conversation_id
    if request.prompt_cache_key is not None:
        return f"{request.owner}\0{request.prompt_cache_key}"
    beginning = ""
    for message in request.messages:
        content = message["content"]
        text = content if isinstance(content, str) else json.dumps(content)
        beginning += f"{message['role']}\0{text[:_BEGINNING_CHARS]}\0"
        if len(beginning) >= _BEGINNING_CHARS:
            break
    return f"{request.owner}\0{beginning[:_BEGINNING_CHARS]}"


async def _get(endpoint: Endpoint, url: str) -> tuple[int | None, list[str]]:
    """Status and lines of a page of an endpoint; None where it does not answer."""
    try:
        await hosts.check(endpoint.model)
        key = api_key_of(endpoint.model)
        return await direct.get(url, key, _PROBE_LIMIT_SECONDS)
    except (InferenceError, httpx.HTTPError, TimeoutError) as error:
        logger.debug("Endpoint %s: no answer of %s: %r", endpoint.name, url, type(error))
        return None, []


async def _load_of(endpoint: Endpoint) -> EngineLoad | None:
    url = urljoin(endpoint.model.config["base_url"], "/metrics")
    status, lines = await _get(endpoint, url)
    return engine_load.parse(lines) if status == 200 else None
