"""Events on their way out: they are logged, then sent to the web processes, several at a time."""

import asyncio
import logging
import uuid
from dataclasses import dataclass

import redis
from channels.layers import get_channel_layer
from django.conf import settings

from monitoring.events import log
from monitoring.events.log import LoggedEvent
from monitoring.redis import outbox
from monitoring.redis.outbox import Batch, Sink
from monitoring.redis.per_process import PerProcess

logger = logging.getLogger(__name__)

# The Channels group that the web processes listen to, and the type of its messages.
GROUP = "events"
MESSAGE_TYPE = "events.published"


@dataclass(frozen=True, slots=True)
class _Published:
    event: LoggedEvent
    is_logged: bool
    once: str


def put(event: LoggedEvent, *, is_logged: bool, once: str = "") -> None:
    """Have an event sent out soon, after those that this process has put before.

    One that `is_logged` is kept back while Redis is away; another is dropped then. Of those with
    the same `once` that all processes put within minutes, the first alone is logged and sent.
    """
    outbox.put(_SINK, _Published(event, is_logged, once))


def gather_for(seconds: float) -> None:
    """Have the events of this process wait that long for more to go out with them."""
    _SINK.gather_seconds = seconds


def _send(batch: Batch[_Published]) -> None:
    """Raises redis.RedisError when nothing is logged; sent again, the batch is logged once."""
    logged = [each for each in batch.items if each.is_logged]
    once = [each.once for each in logged]
    numbered = iter(
        log.append([each.event for each in logged], _writer(), batch.number, once) if logged else ()
    )
    events = []
    for each in batch.items:
        event = next(numbered) if each.is_logged else each.event
        if event.seq is not None or not each.is_logged:
            events.append(event)
    try:
        _loop().run_until_complete(_send_to_group(events))
    except (redis.RedisError, OSError) as exc:
        # Those that are logged are read in the log, the others superseded soon.
        logger.debug("%d events reach no web process at once: %s", len(events), exc)


async def _send_to_group(events: list[LoggedEvent]) -> None:
    layer = get_channel_layer()
    assert layer is not None, "CHANNEL_LAYERS has no default"
    message = {"type": MESSAGE_TYPE, "events": [event.fields() for event in events]}
    async with asyncio.timeout(settings.REDIS_TIMEOUT_SECONDS):
        await layer.group_send(GROUP, message)


@PerProcess
def _writer() -> str:
    """The name of this process in the log of events."""
    return uuid.uuid4().hex


# One for all the life of the outbox thread: the layer connects once a loop.
_loop = PerProcess(asyncio.new_event_loop)

_SINK = Sink(
    name="Events", send=_send, gather_seconds=0.02, is_kept=lambda published: published.is_logged
)
