"""GET /tasks/{id}/stream: an answer's text as it comes, then the task, as Server-Sent Events.

The text comes from the stream in Redis; what is missing there is given from the saved result, once
the task has ended.
"""

import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from django.db import Error as DatabaseError
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ValidationError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from inference.api.sse_cursor import SSECursor, SSEWriter
from inference.models import GenerationTask
from monitoring.streams.follower import StreamReader

# In the ASGI scope: the StreamReader of the process, and what runs a function in a thread that may
# use the database.
READER = "sopllm.stream_reader"
IN_THREAD = "sopllm.in_thread"

CONTENT_TYPE = "text/event-stream"
PARAMETERS = [
    OpenApiParameter(
        "Last-Event-ID", str, OpenApiParameter.HEADER, description="Go on after this event."
    ),
    OpenApiParameter("last_event_id", str, description="The same, where no header can be set."),
]
RESPONSES = {
    (200, CONTENT_TYPE): OpenApiTypes.STR,
    204: None,  # the reader has it all
}

_RETRY = b"retry: 1000\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
_KEEP_ALIVE_SECONDS = 15.0
# An end may be stored without being announced: after this much silence the row is looked at.
_LOOK_SECONDS = 3.0
_EVENT_ID = re.compile(r"(\d{1,10})-(\d{1,10})-(\d{1,10})", re.ASCII)

InThread = Callable[..., Awaitable[Any]]


class EventStreamResponse(StreamingHttpResponse):
    """Server-Sent Events; the ASGI handler sends `events` as they come, and closes them."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, content_type=CONTENT_TYPE, headers=headers)
        self.events = events


class AnyAccept(BaseContentNegotiation):
    """An EventSource accepts nothing but events; the errors that it is told are JSON all the same.

    The first renderer is taken.
    """

    def select_parser(self, request: Request, parsers: Any) -> BaseParser:
        parser: BaseParser = parsers[0]
        return parser

    def select_renderer(
        self, request: Request, renderers: Any, format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        return renderers[0], renderers[0].media_type


def last_event_id(request: Request) -> str:
    """The last event that the client has seen, "" for none.

    The header goes first: an EventSource that reconnects sends it, to the same address as before.
    """
    for name in request.query_params:
        if name != "last_event_id":
            raise ValidationError({name: ["Unknown parameter: check its spelling."]})
    return request.headers.get("Last-Event-ID") or request.query_params.get("last_event_id", "")


def cursor_after(event_id: str) -> SSECursor | None:
    """Where a reader is that has seen this event last; None at the beginning."""
    if not event_id:
        return None
    if match := _EVENT_ID.fullmatch(event_id):
        return SSECursor(*map(int, match.groups()))
    message = "Give the id of an event of this stream; without one it begins at the beginning."
    raise ValidationError({"last_event_id": [message]})


def response(
    task: GenerationTask, cursor: SSECursor | None, request: Request
) -> EventStreamResponse:
    """The stream of a task from a cursor on."""
    scope: Any = getattr(request, "scope", {})
    stream = TaskStream(task, cursor, scope[READER], scope[IN_THREAD])
    return EventStreamResponse(stream.events())


class TaskStream:
    """The stream of one task for one client."""

    def __init__(
        self,
        task: GenerationTask,
        cursor: SSECursor | None,
        reader: StreamReader,
        in_thread: InThread,
    ) -> None:
        self._task = task
        self._writer = SSEWriter(cursor)
        self._reader = reader
        self._in_thread = in_thread

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Bytes of whole events from the cursor on, until the task has ended, or is deleted."""
        yield _RETRY + self._writer.begin(_current_attempt(self._task))
        told_at = time.monotonic()
        async with aclosing(self._stored() if self._task.has_ended else self._live()) as parts:
            async for part in parts:
                if part or time.monotonic() - told_at >= _KEEP_ALIVE_SECONDS:
                    told_at = time.monotonic()
                    yield part or _KEEP_ALIVE
        if self._task.has_ended:
            yield self._writer.conclude(self._task)

    async def _stored(self) -> AsyncGenerator[bytes, None]:
        """The deltas of an ended task; none of one that has no result, since they are void."""
        after = self._writer.cursor.entry_id
        while self._task.result and (page := await self._reader.stored(self._task.pk, after)):
            yield self._writer.add(page)
            after = page[-1].id

    async def _live(self) -> AsyncGenerator[bytes, None]:
        """The deltas as they come, b"" where there are none; until the row says that it is over."""
        after = self._writer.cursor.entry_id
        with self._reader.following(self._task.pk, after) as follower:
            while not self._task.has_ended:
                deltas = await follower.read(_LOOK_SECONDS)
                yield self._writer.add(deltas)
                if not deltas or any(delta.is_end for delta in deltas):
                    if not await self._look():
                        return
                    yield self._writer.begin(_current_attempt(self._task))

    async def _look(self) -> bool:
        """See what the row says; False when it is gone."""
        try:
            task = await self._in_thread(GenerationTask.objects.read, self._task.pk)
        except DatabaseError:
            return True  # it is looked at again soon
        self._task = task or self._task
        return task is not None


def _current_attempt(task: GenerationTask) -> int:
    """The attempt whose text counts: of a task that was given back, it is the next one."""
    return task.attempt + (task.status == GenerationTask.Status.PENDING)
