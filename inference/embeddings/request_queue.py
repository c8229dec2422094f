"""Requests on their way to the embeddings workers, and answers on their way back, in Redis.

Requests lie in a stream, which a group of workers reads: one that a worker has taken stays there
until it is answered, so that another worker can take it over from a dead one. Nothing here outlives
its use by long. All functions raise redis.RedisError.
"""

import contextlib
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
# There while a message to a worker is on its way, and while a worker looks for requests by itself.
_RUNG = "embeddings:rung"
# A worker that is loading a model does not renew it: one message too many does no harm.
_RUNG_MS = 5000
_KEPT_SECONDS = 3600
_NO_GROUP = "NOGROUP"
_MANY = 1000


class MailboxFullError(Exception):
    """Too many requests wait."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A request as it lies in the stream, at `entry_id`; who waits for the answer knows the key."""

    entry_id: str
    key: str
    request: EmbeddingRequest


def new_key() -> str:
    """What the end of a request is announced by, and where its answer lies."""
    return f"embedding:{uuid.uuid4().hex}"


def post(key: str, request: EmbeddingRequest) -> str:
    """Leave a request for the workers, and ring; returns its entry. Raises MailboxFullError."""
    pipe = client().pipeline(transaction=False)
    pipe.xadd(_STREAM, {"key": key, "request": request.to_json()})
    pipe.expire(_STREAM, _KEPT_SECONDS)
    pipe.xlen(_STREAM)
    pipe.set(_RUNG, 1, nx=True, px=_RUNG_MS)
    entry_id, _, num_requests, is_mine_to_ring = pipe.execute()
    if is_mine_to_ring:
        _ring()
    if num_requests > MAX_REQUESTS:
        client().xdel(_STREAM, entry_id)
        raise MailboxFullError
    return str(entry_id)


def ring() -> None:
    """Send a worker a message, unless one is on its way, or looks already."""
    if client().set(_RUNG, 1, nx=True, px=_RUNG_MS):
        _ring()


def _ring() -> None:
    if not dispatch.enqueue([dispatch.EMBED]):
        client().delete(_RUNG)  # whoever waits rings again


def collect(key: str) -> Answer | None:
    """The answer, once: it is gone from then on. None while there is none."""
    pipe = client().pipeline(transaction=True)
    pipe.hgetall(key)
    pipe.delete(key)
    fields, _ = pipe.execute()
    return Answer(**fields) if fields else None


def has(entry_id: str) -> bool:
    """Whether the request is there, taken or not; an answered one is not, nor is a lost one."""
    return bool(client().xrange(_STREAM, entry_id, entry_id))


def forget(key: str, entry_id: str) -> None:
    """Nobody waits for the answer any more."""
    pipe = client().pipeline(transaction=False)
    _remove(pipe, entry_id)
    pipe.delete(key)
    pipe.execute(raise_on_error=False)


def look(max_letters: int, wait_seconds: float) -> list[Letter]:
    """The next requests for this worker, which need not ring now; waits for so long for one."""
    client().set(_RUNG, 1, px=_RUNG_MS)
    return _read(">", max_letters, round(wait_seconds * 1000) or 1)


def take(max_letters: int) -> list[Letter]:
    """The next requests for this worker that are there."""
    return _read(">", max_letters, None)


def take_again() -> list[Letter]:
    """What this worker had taken before, and has not answered."""
    return _read("0", _MANY, None)


def take_over() -> list[Letter]:
    """What workers had taken that are gone, and have not answered."""
    consumers = _group(lambda: client().xinfo_consumers(_STREAM, _GROUP))
    gone = workers.gone((each["name"] for each in consumers), Queue.EMBEDDINGS)
    return [letter for name in gone for letter in _inherit(name)]


def stop_looking() -> None:
    """From now on a new request has to ring. Take once more after this."""
    client().delete(_RUNG)


def deliver(answers: Sequence[tuple[Letter, Answer]]) -> None:
    """Hand over answers, and tell those who wait."""
    pipe = client().pipeline(transaction=False)
    for letter, answer in answers:
        pipe.hset(letter.key, mapping=asdict(answer))
        pipe.expire(letter.key, _answer_seconds())
        _remove(pipe, letter.entry_id)
        ends.put_into(pipe, letter.key)
    pipe.execute()


def forgotten(letters: Iterable[Letter]) -> list[Letter]:
    """Those of the letters that nobody waits for any more."""
    mine = list(letters)
    pipe = client().pipeline(transaction=False)
    for letter in mine:
        pipe.xpending_range(_STREAM, _GROUP, letter.entry_id, letter.entry_id, 1)
    found = pipe.execute(raise_on_error=False)
    return [letter for letter, entries in zip(mine, found, strict=True) if not entries]


def _remove(pipe: RedisClient, entry_id: str) -> None:
    pipe.xack(_STREAM, _GROUP, entry_id)
    pipe.xdel(_STREAM, entry_id)


def _inherit(name: str) -> list[Letter]:
    """Take over what a worker had taken that is gone, and forget the worker."""
    pending = client().xpending_range(_STREAM, _GROUP, "-", "+", _MANY, name)
    ids = [entry["message_id"] for entry in pending]
    entries = client().xclaim(_STREAM, _GROUP, _me(), 0, ids) if ids else []
    client().xgroup_delconsumer(_STREAM, _GROUP, name)
    return _letters(entries)


def _read(start: str, max_letters: int, block: int | None) -> list[Letter]:
    streams = {_STREAM: start}
    found = _group(
        lambda: client().xreadgroup(_GROUP, _me(), streams, count=max_letters, block=block)
    )
    return _letters(entries[0][1]) if (entries := list(found)) else []


def _group(ask: Callable[[], Any]) -> Any:
    """What is asked of the group, which is made if need be: it goes with the stream."""
    try:
        return ask()
    except redis.ResponseError as error:
        if not str(error).startswith(_NO_GROUP):
            raise
    with contextlib.suppress(redis.ResponseError):  # another worker was faster
        client().xgroup_create(_STREAM, _GROUP, id="0", mkstream=True)
    return ask()


def _letters(entries: Iterable[tuple[str, dict[str, str]]]) -> list[Letter]:
    """An entry that was forgotten meanwhile has no fields."""
    return [
        Letter(entry_id, fields["key"], EmbeddingRequest.from_json(fields["request"]))
        for entry_id, fields in entries
        if fields
    ]


def _me() -> str:
    return worker_identity.current()


def _answer_seconds() -> int:
    return int(settings.EMBEDDING_TIMEOUT_SECONDS) + 10
