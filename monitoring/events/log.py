"""The log of events in Redis: the last MAX_EVENTS of a day, numbered without a gap.

Numbering starts at the time in microseconds, and starts anew when Redis comes back without events
that this process knows of. So no number is ever given twice, and numbers that are missing tell
whoever reads on that something was lost.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any

from monitoring.redis.client import RedisClient, client

MAX_EVENTS = 10_000
KEPT_SECONDS = 86_400

_LOG = "events"
_COUNTER = "events:seq"
# Keys of what was told, by the time in seconds, and the time up to which nothing is left untold.
_TOLD = "events:told"
_TOLD_UNTIL = "events:told_until"
# Keys are known for so long.
TOLD_SECONDS = 600

# The highest number that this process has seen.
_last_known = 0

_ENSURE_COUNTER = """
if tonumber(redis.call('GET', KEYS[1]) or -1) < tonumber(ARGV[1]) then
  local now = redis.call('TIME')
  redis.call('SET', KEYS[1], string.format('%.0f', now[1] * 1000000 + now[2]))
end
"""
_LAST_SEQ = f"{_ENSURE_COUNTER} return redis.call('GET', KEYS[1])"
# Atomic, and in one round trip. A batch whose answer was lost may be sent once more: it is known by
# its number, and not appended twice. An event whose key was told before has the number 0.
_APPEND = (
    _ENSURE_COUNTER
    + """
local known = redis.call('HMGET', KEYS[3], 'batch', 'seqs')
if known[1] == ARGV[2] then return known[2] end
local now = redis.call('TIME')[1]
local seqs = {}
for i = 6, #ARGV, 2 do
  local seq = '0'
  if ARGV[i] == '' or redis.call('ZADD', KEYS[4], 'NX', now, ARGV[i]) == 1 then
    seq = string.format('%.0f', redis.call('INCR', KEYS[1]))
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], seq .. '-0', 'event', ARGV[i + 1])
  end
  seqs[#seqs + 1] = seq
end
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('HSET', KEYS[3], 'batch', ARGV[2], 'seqs', table.concat(seqs, ' '))
redis.call('EXPIRE', KEYS[3], ARGV[4])
return table.concat(seqs, ' ')
"""
)


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event with its number, which its owner sees, or everyone where that is None.

    `seq` is None for a transient event, which is superseded by the next one of its type.
    """

    type: str
    timestamp: str
    data: dict[str, Any]
    owner: str | None = None
    seq: int | None = None

    def is_visible_to(self, owner: str | None) -> bool:
        """Whether that owner sees it; None sees the events of all owners."""
        return owner is None or self.owner in (None, owner)

    def fields(self) -> dict[str, Any]:
        """Its fields by name; `asdict` would copy `data` deeply."""
        return {name: getattr(self, name) for name in _FIELDS}


_FIELDS = tuple(field.name for field in dataclass_fields(LoggedEvent))


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Events in order; `has_gap` when some that belong before or between them are lost.

    `end_seq` is the number up to which they tell all, `last_seq` that of the last event there is.
    """

    events: list[LoggedEvent]
    has_gap: bool
    end_seq: int
    last_seq: int

    @property
    def has_more(self) -> bool:
        """Whether the log goes on after these."""
        return self.end_seq < self.last_seq


def append(
    events: Sequence[LoggedEvent], writer: str, batch: int, once: Sequence[str] = ()
) -> list[LoggedEvent]:
    """Log events; the same, numbered. Raises redis.RedisError.

    `writer` and `batch` name the call: a repetition appends nothing. `once`: for each event a key,
    "" for none; one whose key was logged before is not logged, and its `seq` stays None.
    """
    script = client().register_script(_APPEND)
    entries: list[str] = []
    for key, event in zip(once or [""] * len(events), events, strict=True):
        fields = event.fields()
        del fields["seq"]
        entries += (key, json.dumps(fields, ensure_ascii=False))
    answer = script(
        keys=[_COUNTER, _LOG, f"events:writer:{writer}", _TOLD],
        args=[_last_known, batch, MAX_EVENTS, KEPT_SECONDS, TOLD_SECONDS, *entries],
    )
    seqs = [int(seq) for seq in answer.split()]
    _remember(max(seqs))
    return [replace(event, seq=seq or None) for event, seq in zip(events, seqs, strict=True)]


def untold(keys: Sequence[str]) -> list[str]:
    """Those of the keys of which no event was logged lately. Raises redis.RedisError."""
    scores = client().zmscore(_TOLD, keys) if keys else []
    return [key for key, score in zip(keys, scores, strict=True) if score is None]


def told_until() -> float | None:
    """The time that `set_told_until` was given last; None in an empty Redis. Raises RedisError."""
    seconds = client().get(_TOLD_UNTIL)
    return None if seconds is None else float(seconds)


def set_told_until(seconds: float) -> None:
    """Say up to which time of the database's clock all ends were told. Raises RedisError."""
    client().set(_TOLD_UNTIL, seconds)


def last_seq() -> int:
    """The number of the last event. Raises redis.RedisError."""
    seq = int(client().register_script(_LAST_SEQ)(keys=[_COUNTER], args=[_last_known]))
    _remember(seq)
    return seq


def read(after: int, limit: int = MAX_EVENTS) -> Excerpt:
    """The first events after a number. Raises redis.RedisError."""
    pipe = client().pipeline(transaction=True)
    _queue_read(pipe, after, limit)
    return _excerpt(after, limit, *pipe.execute())


async def read_async(redis_client: RedisClient, after: int, limit: int = MAX_EVENTS) -> Excerpt:
    """As `read`, with a client of the running event loop."""
    pipe = redis_client.pipeline(transaction=True)
    _queue_read(pipe, after, limit)
    return _excerpt(after, limit, *await pipe.execute())


def _queue_read(pipe: RedisClient, after: int, limit: int) -> None:
    pipe.xrange(_LOG, min=f"({max(0, after)}-0", count=limit)
    pipe.get(_COUNTER)


def _excerpt(after: int, limit: int, entries: Sequence[Any], counter: str | None) -> Excerpt:
    numbers = [int(entry_id.partition("-")[0]) for entry_id, _ in entries]
    events = [
        LoggedEvent(**json.loads(fields["event"]), seq=number)
        for number, (_, fields) in zip(numbers, entries, strict=True)
    ]
    last_seq = int(counter or 0)
    _remember(last_seq)
    end_seq = numbers[-1] if len(events) == limit else last_seq
    # From 0 on means from the oldest that is kept.
    start_seq = after or (numbers[0] - 1 if numbers else last_seq)
    return Excerpt(events, end_seq - start_seq != len(events), end_seq, last_seq)


def _remember(seq: int) -> None:
    global _last_known
    _last_known = max(_last_known, seq)
