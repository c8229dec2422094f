"""The queue of requests for embeddings, and their answers, in Redis.

Requests lie in a stream with a consumer group: one that a worker has read stays there until it is
answered, so that another worker can take it over from a dead one. Nothing here outlives its use by
long. All functions but the two of draining raise redis.RedisError.
"""

import contextlib
import multiprocessing
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import redis
from django.conf import settings

from inference import dispatch
from inference.embeddings.messages import Answer, EmbeddingRequest
from inference.models import Queue
from monitoring.hardware import worker_identity, workers
from monitoring.redis.client import RedisClient, client
from monitoring.streams import ends

MAX_REQUESTS = 1000

_STREAM = "embeddings:requests"
_GROUP = "workers"
# Set while a message to a worker is on its way, and while a worker reads requests by itself.
_NOTIFIED = "embeddings:notified"
# It expires while a worker loads a model; an extra message does no harm.
_NOTIFIED_MS = 5000
_KEPT_SECONDS = 3600
_MAX_UNANSWERED = 1000


# Set in the worker's main process when it shuts down; its child inherits it by fork, so this module
# is imported before.
_draining = multiprocessing.Event()


class TooManyRequestsError(Exception):
    """More than MAX_REQUESTS wait."""


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request at `entry_id` of the stream; `key` announces its answer."""

    entry_id: str
    key: str
    request: EmbeddingRequest


def drain() -> None:
    """Read no more requests from now on: the worker of this process is to stop."""
    _draining.set()


def is_draining() -> bool:
    return _draining.is_set()


def new_key() -> str:
    """A new key: announces the end of a request, and holds its answer."""
    return f"embedding:{uuid.uuid4().hex}"


def post(key: str, request: EmbeddingRequest) -> str:
    """Add a request, and notify a worker; returns its entry. Raises TooManyRequestsError."""
    pipe = client().pipeline(transaction=False)
    pipe.xadd(_STREAM, {"key": key, "request": request.to_json()})
    pipe.expire(_STREAM, _KEPT_SECONDS)
    pipe.xlen(_STREAM)
    pipe.set(_NOTIFIED, 1, nx=True, px=_NOTIFIED_MS)
    entry_id, _, num_requests, was_set = pipe.execute()
    if was_set:
        _enqueue()
    if num_requests > MAX_REQUESTS:
        client().xdel(_STREAM, entry_id)
        raise TooManyRequestsError
    return str(entry_id)


def notify() -> None:
    """Send a worker a message, unless one is on its way, or a worker reads already."""
    if client().set(_NOTIFIED, 1, nx=True, px=_NOTIFIED_MS):
        _enqueue()


def _enqueue() -> None:
    if not dispatch.enqueue([dispatch.EMBED]):
        client().delete(_NOTIFIED)  # the web process that waits notifies again


def take_answer(key: str) -> Answer | None:
    """The answer, once: it is gone from then on. None while there is none."""
    pipe = client().pipeline(transaction=True)
    pipe.hgetall(key)
    pipe.delete(key)
    fields, _ = pipe.execute()
    return Answer(**fields) if fields else None


def has(entry_id: str) -> bool:
    """Whether the request is there, read or not; an answered one is not, nor is a lost one."""
    return bool(client().xrange(_STREAM, entry_id, entry_id))


def forget(key: str, entry_id: str) -> None:
    """Nobody waits for the answer any more."""
    pipe = client().pipeline(transaction=False)
    _remove(pipe, entry_id)
    pipe.delete(key)
    pipe.execute(raise_on_error=False)


def read(max_requests: int, wait_seconds: float = 0) -> list[QueuedRequest]:
    """The next requests for this worker; while it waits for one, clients send no message."""
    if not wait_seconds:
        return _read(">", max_requests, None)
    client().set(_NOTIFIED, 1, px=_NOTIFIED_MS)
    return _read(">", max_requests, round(wait_seconds * 1000) or 1)


def read_unanswered() -> list[QueuedRequest]:
    """The requests that this worker had read before, and has not answered."""
    return _read("0", _MAX_UNANSWERED, None)


def stop_reading() -> None:
    """From now on a new request needs a message. Read once more after this."""
    client().delete(_NOTIFIED)


def take_over() -> list[QueuedRequest]:
    """Take over the unanswered requests of workers that are gone; these are forgotten."""
    consumers = _with_group(lambda: client().xinfo_consumers(_STREAM, _GROUP))
    found = []
    for name in workers.gone((each["name"] for each in consumers), Queue.EMBEDDINGS):
        pending = client().xpending_range(_STREAM, _GROUP, "-", "+", _MAX_UNANSWERED, name)
        if ids := [entry["message_id"] for entry in pending]:
            found += client().xclaim(_STREAM, _GROUP, worker_identity.current(), 0, ids)
        client().xgroup_delconsumer(_STREAM, _GROUP, name)
    return _requests(found)


def deliver(answers: Sequence[tuple[QueuedRequest, Answer]]) -> None:
    """Hand over answers, and announce them."""
    pipe = client().pipeline(transaction=False)
    for queued, answer in answers:
        pipe.hset(queued.key, mapping=asdict(answer))
        pipe.expire(queued.key, int(settings.EMBEDDING_TIMEOUT_SECONDS) + 10)
        _remove(pipe, queued.entry_id)
        ends.put_into(pipe, queued.key)
    pipe.execute()


def forgotten(requests: Iterable[QueuedRequest]) -> list[QueuedRequest]:
    """Those of the requests of this worker whose answers nobody waits for any more."""
    mine = list(requests)
    pipe = client().pipeline(transaction=False)
    for queued in mine:
        pipe.xpending_range(_STREAM, _GROUP, queued.entry_id, queued.entry_id, 1)
    found = pipe.execute(raise_on_error=False)
    return [queued for queued, entries in zip(mine, found, strict=True) if not entries]


def _remove(pipe: RedisClient, entry_id: str) -> None:
    pipe.xack(_STREAM, _GROUP, entry_id)
    pipe.xdel(_STREAM, entry_id)


def _read(start: str, max_requests: int, block_ms: int | None) -> list[QueuedRequest]:
    """The group's next requests from ">" on, this worker's unanswered ones from "0" on."""
    me, streams = worker_identity.current(), {_STREAM: start}
    found = _with_group(
        lambda: client().xreadgroup(_GROUP, me, streams, count=max_requests, block=block_ms)
    )
    return _requests(entries[0][1]) if (entries := list(found)) else []


def _with_group(ask: Callable[[], Any]) -> Any:
    """The group's reply. The group is created if it expired with the stream."""
    try:
        return ask()
    except redis.ResponseError as error:
        if not str(error).startswith("NOGROUP"):
            raise
    with contextlib.suppress(redis.ResponseError):  # another worker was faster
        client().xgroup_create(_STREAM, _GROUP, id="0", mkstream=True)
    return ask()


def _requests(entries: Iterable[tuple[str, dict[str, str]]]) -> list[QueuedRequest]:
    """An entry that was forgotten meanwhile has no fields."""
    return [
        QueuedRequest(entry_id, fields["key"], EmbeddingRequest.from_json(fields["request"]))
        for entry_id, fields in entries
        if fields
    ]
