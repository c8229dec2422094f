"""The token stream of a task: a Redis stream with the deltas of its answer.

The id of a delta is `{attempt}-{n}`, where n is how many characters the answer of the attempt has
with it: a reader that has so much can go on from here, or from the saved result. Text, reasoning
and the arguments of tool calls count, and each call one more. Redis takes no id below its last one,
so a delta that is sent twice is kept once, and a lost attempt can add nothing once the next one has
begun.

The stream is a preview for readers; the saved result is the truth. It lives as long as the task's
row. The end of the task is announced in `ends`.
"""

import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import redis
from django.conf import settings

from monitoring.redis.client import RedisClient, client
from monitoring.streams import ends

logger = logging.getLogger(__name__)

# Of each attempt while Redis is away; readers get what is dropped from the saved result.
MAX_UNSENT = 10_000
# Of texts that become one delta: a short one costs Redis and readers as much as a long one.
MAX_MERGED_CHARS = 1_000

_WARN_AGAIN_SECONDS = 10.0
# What was kept back goes out in parts: each is packed anew while Redis stays away.
_MAX_PER_ROUND_TRIP = 256
_REFUSED_ID = "The ID specified in XADD is equal or smaller"

_warned_at = float("-inf")


def stream_key(task_id: str) -> str:
    """The Redis key of a task's token stream."""
    return f"task:{task_id}:stream"


@dataclass(frozen=True, slots=True)
class Delta:
    """A delta of an attempt's answer: of its text, its reasoning or a tool call.

    `num_chars` is the length of that answer with the delta, `index` counts the deltas before it.
    `tool_call` and `logprobs` are as the deltas of OpenAI's streams have them: a part of one call,
    and the tokens that came with this delta.
    """

    id: str
    attempt: int
    num_chars: int
    index: int
    text: str = ""
    reasoning: str = ""
    tool_call: dict[str, Any] | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """How many characters it adds to the answer."""
        if self.tool_call is not None:
            return ("id" in self.tool_call) + len(self.tool_call["function"]["arguments"])
        return len(self.text or self.reasoning)


def parse(entry_id: str, fields: dict[str, str]) -> Delta:
    """From what Redis holds under an id of a token stream."""
    attempt, _, num_chars = entry_id.partition("-")
    tool_call = fields.get("tool_call")
    return Delta(
        entry_id,
        int(attempt),
        int(num_chars),
        int(fields["index"]),
        text=fields.get("text", ""),
        reasoning=fields.get("reasoning", ""),
        tool_call=None if tool_call is None else json.loads(tool_call),
        logprobs=json.loads(fields.get("logprobs", "[]")),
    )


class DeltaWriter:
    """Collects an attempt's answer for its stream; several deltas go out in a round trip.

    Texts that wait together go out as one delta, unless they have log-probabilities.
    """

    def __init__(self, task_id: str, attempt: int) -> None:
        self._key = stream_key(task_id)
        self._attempt = attempt
        self._unsent: deque[tuple[str, dict[str, str | int]]] = deque(maxlen=MAX_UNSENT)
        self._num_chars = 0
        self._num_deltas = 0
        self._offered_until = 0
        self._was_offered = False

    @property
    def has_unsent(self) -> bool:
        """Whether there are deltas to be sent."""
        return bool(self._unsent)

    @property
    def is_first_due(self) -> bool:
        """Whether the first delta is there, and nobody has tried to send it yet."""
        return bool(self._unsent) and not self._was_offered

    def write(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> None:
        """Queue a delta of the text; it must not be empty."""
        self._write_text("text", text, logprobs)

    def write_reasoning(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> None:
        """Queue a delta of the reasoning; it must not be empty."""
        self._write_text("reasoning", text, logprobs)

    def _write_text(self, name: str, text: str, logprobs: list[dict[str, Any]] | None) -> None:
        # What was offered to Redis may have arrived, and must keep its id.
        if not logprobs and self._num_chars > self._offered_until:
            _, last = self._unsent[-1]
            if last.keys() == {name, "index"} and len(str(last[name])) < MAX_MERGED_CHARS:
                last[name] = f"{last[name]}{text}"
                self._num_chars += len(text)
                self._unsent[-1] = (self._last_id, last)
                return
        self._add(len(text), {name: text}, logprobs)

    def write_tool_call(
        self, part: dict[str, Any], logprobs: list[dict[str, Any]] | None = None
    ) -> None:
        """Queue a part of a tool call, with its id if it is the first, or else with arguments."""
        length = ("id" in part) + len(part["function"]["arguments"])
        self._add(length, {"tool_call": json.dumps(part)}, logprobs)

    @property
    def _last_id(self) -> str:
        return f"{self._attempt}-{self._num_chars}"

    def _add(
        self, length: int, fields: dict[str, str | int], logprobs: list[dict[str, Any]] | None
    ) -> None:
        self._num_chars += length
        fields["index"] = self._num_deltas
        if logprobs:
            fields["logprobs"] = json.dumps(logprobs)
        self._unsent.append((self._last_id, fields))
        self._num_deltas += 1

    def flush(self) -> None:
        """Send all that is queued; without Redis it stays queued, and goes with the next."""
        while self._unsent:
            if _deliver([self]) is None:
                return

    def put_into(self, pipe: RedisClient) -> None:
        """Queue the commands that send what is queued, or the first part of it."""
        self._was_offered = self._was_offered or bool(self._unsent)
        for entry_id, fields in islice(self._unsent, _MAX_PER_ROUND_TRIP):
            pipe.xadd(self._key, fields, id=entry_id)
            self._offered_until = int(entry_id.partition("-")[2])

    def confirm(self) -> None:
        """What was put into a pipe has arrived; more may have been written meanwhile."""
        while self._unsent and int(self._unsent[0][0].partition("-")[2]) <= self._offered_until:
            self._unsent.popleft()


def send(writers: Iterable[DeltaWriter], read: Sequence[str] = ()) -> list[str | None]:
    """Send the deltas of several attempts in one round trip, and read some keys in the same.

    The keys' values, None for one that is not there, and for all without Redis. Never fails the
    generation.
    """
    answers = _deliver(writers, read)
    return [None] * len(read) if answers is None else answers


def pipeline(writers: Iterable[DeltaWriter], read: Sequence[str] = ()) -> RedisClient:
    """The round trip of `send`, to be executed; then each writer is to `confirm`."""
    # As one transaction: else a reader is woken by the first delta, and reads again for the others.
    pipe = client().pipeline(transaction=True)
    for writer in writers:
        writer.put_into(pipe)
    if read:
        pipe.mget(read)
    return pipe


def execute(pipe: RedisClient) -> list[Any] | None:
    """The answers; None without Redis."""
    try:
        answers: list[Any] = pipe.execute(raise_on_error=False)
        for answer in answers:
            # A refused id is no error: the delta is there already, or its attempt was lost.
            if isinstance(answer, redis.RedisError) and not str(answer).startswith(_REFUSED_ID):
                raise answer
    except redis.RedisError as exc:
        global _warned_at
        if time.monotonic() - _warned_at > _WARN_AGAIN_SECONDS:
            _warned_at = time.monotonic()
            logger.warning("Live tokens are kept back, Redis is unreachable: %s", exc)
        return None
    return answers


def _deliver(writers: Iterable[DeltaWriter], read: Sequence[str] = ()) -> list[str | None] | None:
    """As `send`; None without Redis."""
    writers = list(writers)
    answers = execute(pipeline(writers, read))
    if answers is None:
        return None
    for writer in writers:
        writer.confirm()
    values: list[str | None] = answers[-1] if read else []
    return values


def end(task_id: str) -> None:
    """Have a task's stream expire with its row, and wake everyone who waits for the task."""
    pipe = client().pipeline(transaction=False)
    pipe.expire(stream_key(task_id), settings.TASK_TTL_SECONDS)
    ends.announce(task_id, pipe)


def delete(task_ids: list[str]) -> None:
    """Drop the streams of purged tasks."""
    if task_ids:
        with contextlib.suppress(redis.RedisError):  # they expire by themselves
            client().delete(*map(stream_key, task_ids))


def read_deltas(task_id: str, timeout_seconds: float) -> Iterator[str]:
    """The text of a task as it comes, until it ends; TimeoutError past the time.

    What a lost attempt has written is skipped, once the next one has begun.
    """
    give_up_at = time.monotonic() + timeout_seconds
    key = stream_key(task_id)
    cursors = {key: "0-0", ends.STREAM: "0-0"}
    block_ms = max(1, int(settings.REDIS_TIMEOUT_SECONDS * 500))
    while time.monotonic() < give_up_at:
        found = dict(client().xread(cursors, block=block_ms))
        cursors |= {stream: entries[-1][0] for stream, entries in found.items()}
        deltas = [parse(*each) for each in found.get(key, ())]
        texts = (each.text for each in deltas if each.attempt == deltas[-1].attempt)
        yield from filter(None, texts)
        if any(fields["key"] == task_id for _, fields in found.get(ends.STREAM, ())):
            return
    raise TimeoutError(f"Task {task_id} did not end within {timeout_seconds:.0f} s.")
