"""Deferred responses: the ASGI handler sends them, and waits on the event loop.

Long polls, requests for embeddings and streams of events are each a `DeferredResponse`; a view that
returns one holds no thread while it waits.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from monitoring.api.query_parameters import number_parameter
from monitoring.streams.follower import Follower

MAX_WAIT_SECONDS = 60.0
WAIT_PARAMETER = number_parameter("wait", 0.0, MAX_WAIT_SECONDS, "Seconds to wait for the end.")

# Without Redis no end is announced: poll this often.
_LOOK_AGAIN_SECONDS = 2.0
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+)")

# Calls a function in a thread that may use the database.
InThread = Callable[..., Awaitable[Any]]


class DeferredResponse(StreamingHttpResponse):
    """Its status and headers are sent with the first of its parts, and may change until then."""

    def parts(self, follower: Follower, in_thread: InThread) -> AsyncGenerator[bytes, None]:
        """The body; cancelled when the client is gone, or the server stops.

        Raises APIException, or whatever a view may raise, before the first part.
        """
        raise NotImplementedError

    def refuse(self) -> None:
        """End what the view has begun for it: it is not sent, since its client has too many."""


class LongPoll(DeferredResponse):
    """Answers when the ends of `keys` are announced, or when the time is over.

    `look` runs in a thread, now and then: it gives the answer, or None while there is none. When it
    is called with True, nobody waits any more: it has to answer then.
    """

    def __init__(
        self, keys: Sequence[str], seconds: float, look: Callable[[bool], HttpResponse | None]
    ) -> None:
        super().__init__()
        self._keys = keys
        self._seconds = seconds
        self._look = look

    async def parts(self, follower: Follower, in_thread: InThread) -> AsyncGenerator[bytes, None]:
        give_up_at = time.monotonic() + self._seconds
        answer: HttpResponse | None = None
        ended = asyncio.Event()
        with contextlib.ExitStack() as waits, contextlib.suppress(asyncio.CancelledError):
            for key in self._keys:
                waits.enter_context(follower.waiting_for(key, ended.set))
            # The first look comes once the follower knows: the end may have come before.
            while (answer := await in_thread(self._look, False)) is None:
                if (left := give_up_at - time.monotonic()) <= 0:
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), min(left, _LOOK_AGAIN_SECONDS))
                ended.clear()
        if answer is None:
            answer = await in_thread(self._look, True)
            assert answer is not None, "the last look has to answer"
        self.status_code = answer.status_code
        for name, value in answer.items():
            self[name] = value
        self["Content-Length"] = str(len(answer.content))
        yield answer.content


def long_poll(
    view: APIView,
    key: str,
    seconds: float,
    read: Callable[[], tuple[object, bool]],
    status: int = 200,
) -> HttpResponseBase:
    """Respond with what `read` gives as soon as it is final, or the time is over.

    `read` gives a body and whether it is final.
    """
    body, is_final = read()
    if is_final or not seconds:
        return Response(body, status=status)

    def look(is_last: bool) -> HttpResponse | None:
        body, is_final = read()
        if not (is_final or is_last):
            return None
        response = view.finalize_response(view.request, Response(body, status=status))
        assert isinstance(response, Response)
        rendered: HttpResponse = response.render()
        return rendered

    return LongPoll([key], seconds, look)


def requested_seconds(request: Request) -> float:
    """The seconds of `?wait=` or `Prefer: wait=`; 0 means not to wait."""
    text = request.query_params.get("wait")
    if text is None:
        preferred = _PREFER_WAIT.search(request.META.get("HTTP_PREFER", ""))
        return min(float(preferred[1]), MAX_WAIT_SECONDS) if preferred else 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise ValidationError({"wait": [f"Give seconds from 0 to {MAX_WAIT_SECONDS:.0f}."]})
    return seconds
