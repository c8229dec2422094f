"""GET /tasks/{id}/stream: an answer as it comes, then the task, as Server-Sent Events.

The deltas come from the stream in Redis; what is missing there is given from the saved result, once
the task has ended.
"""

import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from django.db import Error as DatabaseError
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import NotAcceptable, ValidationError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from inference.api.deferred_response import DeferredResponse, InThread
from inference.api.sse_cursor import SSECursor, SSEWriter
from inference.models import GenerationTask
from monitoring.streams.delta_stream import Delta
from monitoring.streams.follower import Follower

CONTENT_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
PARAMETERS = [
    OpenApiParameter(
        "Last-Event-ID", str, OpenApiParameter.HEADER, description="Go on after this event."
    ),
    OpenApiParameter("last_event_id", str, description="The same, where no header can be set."),
]
RESPONSES = {
    (200, CONTENT_TYPE): OpenApiTypes.STR,
    204: None,  # the client has seen the last event
}

_RETRY = b"retry: 1000\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
_KEEP_ALIVE_SECONDS = 15.0
# An end may be stored without being announced: read the row after this much silence.
_LOOK_SECONDS = 3.0
_EVENT_ID = re.compile(r"\d{1,10}(?:-\d{1,10}){2}(?:(?:-\d{1,10}){4})?", re.ASCII)


class AnyAccept(DefaultContentNegotiation):
    """Who accepts nothing but events, as an EventSource, is told errors in JSON all the same."""

    def select_renderer(
        self, request: Request, renderers: Any, format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        try:
            found: tuple[BaseRenderer, str] = super().select_renderer(
                request, renderers, format_suffix
            )
        except NotAcceptable:
            return renderers[0], renderers[0].media_type
        return found


def last_event_id(request: Request) -> str:
    """The last event that the client has seen, "" for none.

    The header goes first: an EventSource that reconnects sends it, to the same address as before.
    """
    return request.headers.get("Last-Event-ID") or request.query_params.get("last_event_id", "")


def cursor_after(event_id: str) -> SSECursor | None:
    """Where a reader is that has seen this event last; None at the beginning."""
    if not event_id:
        return None
    if _EVENT_ID.fullmatch(event_id):
        return SSECursor.parse(event_id)
    message = "Give the id of an event of this stream; without one it begins at the beginning."
    raise ValidationError({"last_event_id": [message]})


class TaskStream(DeferredResponse):
    """The stream of one task for one client, as Server-Sent Events."""

    def __init__(self, task: GenerationTask, writer: SSEWriter) -> None:
        super().__init__(content_type=CONTENT_TYPE, headers=HEADERS)
        self._reading = TaskReading(task, writer)

    async def parts(self, follower: Follower, in_thread: InThread) -> AsyncGenerator[bytes, None]:
        """Bytes of whole events from the cursor on, until the task has ended, or is deleted."""
        yield _RETRY + self._reading.begin()
        async with aclosing(kept_alive(self._reading.events(follower, in_thread))) as parts:
            async for part in parts:
                yield part


class TaskReading:
    """Reads the stream of one task, `task` being its row as it was last seen."""

    def __init__(self, task: GenerationTask, writer: SSEWriter) -> None:
        self.task = task
        self._writer = writer

    def begin(self) -> bytes:
        """The text is the current attempt's; of a task that was given back, the next one's."""
        is_pending = self.task.status == GenerationTask.Status.PENDING
        return self._writer.begin(self.task.attempt + is_pending)

    async def events(self, follower: Follower, in_thread: InThread) -> AsyncGenerator[bytes, None]:
        """Events as they come, b"" now and then where there are none.

        Until the task has ended, or is deleted.
        """
        async with aclosing(self._live(follower, in_thread)) as live:
            async for event in live:
                yield event
        # The deltas that are left; those of a task that has no result are void.
        after = self._writer.cursor.entry_id
        while self.task.result and (page := await follower.stored(self.task.pk, after)):
            yield self._writer.add(page)
            after = page[-1].id
        if self.task.has_ended:
            yield self._writer.conclude(self.task)

    async def _live(self, follower: Follower, in_thread: InThread) -> AsyncGenerator[bytes, None]:
        """Deltas as they come, b"" where there are none; until the row says that it is over."""
        if self.task.has_ended:
            return
        with follower.following(self.task.pk, self._writer.cursor.entry_id) as reader:
            deltas: list[Delta] = []  # the task may have ended before it was followed: look first
            while True:
                if not deltas:
                    # A database that does not answer is asked again soon.
                    with suppress(DatabaseError):
                        task = await in_thread(GenerationTask.objects.read, self.task.pk)
                        if task is None:
                            return
                        self.task = task
                    if self.task.has_ended:
                        return
                    yield self.begin()
                deltas = await reader.read(_LOOK_SECONDS)
                yield self._writer.add(deltas)


async def kept_alive(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same events, with a comment line after each long silence."""
    told_at = time.monotonic()
    async with aclosing(events):
        async for event in events:
            if event or time.monotonic() - told_at >= _KEEP_ALIVE_SECONDS:
                told_at = time.monotonic()
                yield event or _KEEP_ALIVE
