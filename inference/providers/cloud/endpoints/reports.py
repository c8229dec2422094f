"""What the api workers tell of the endpoints of their models: each knows its own calls alone."""

import json
import logging

import redis

from inference.providers.cloud.endpoints import pools
from inference.providers.cloud.endpoints.endpoint import EndpointState, Health
from monitoring.hardware import worker_identity
from monitoring.redis import heartbeats

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0

_GROUP = "endpoints"
_KEPT_SECONDS = 6.0
# The worse is what counts where the workers do not agree.
_WORSE = list(Health)

States = dict[int, dict[str, EndpointState]]


def publish() -> None:
    """Tell of those that have been asked of late."""
    text = json.dumps(pools.states())
    try:
        heartbeats.beat(_GROUP, worker_identity.current(), text, _KEPT_SECONDS)
    except redis.RedisError as exc:
        logger.debug("The state of the endpoints is not told: %s", exc)


def read() -> States:
    """By the key of the model's row and the endpoint's name, the calls of all workers together.

    Without those that no worker has asked of late; nothing without Redis.
    """
    try:
        texts = heartbeats.read(_GROUP).values()
    except redis.RedisError:
        return {}
    found: States = {}
    for text in texts:
        for pk, told in json.loads(text).items():
            states = found.setdefault(int(pk), {})
            for name, values in told.items():
                state = EndpointState(*values)
                states[name] = _merged(states[name], state) if name in states else state
    return found


def _merged(one: EndpointState, other: EndpointState) -> EndpointState:
    latencies = [each.latency for each in (one, other) if each.latency is not None]
    limits = [each.limit for each in (one, other) if each.limit is not None]
    return EndpointState(
        health=max(one.health, other.health, key=lambda each: _WORSE.index(Health(each))),
        in_flight=one.in_flight + other.in_flight,
        limit=sum(limits) if len(limits) == 2 else None,
        latency=max(latencies, default=None),
        # The engine's own, of one moment or another.
        waiting=other.waiting if one.waiting is None else one.waiting,
        usage=other.usage if one.usage is None else one.usage,
    )
