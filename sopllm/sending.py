"""Sending Django's responses as an ASGI server wants them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

from django.http import HttpResponse, HttpResponseBase

from inference.api.task_stream import EventStreamResponse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def send_whole(send: Send, response: HttpResponse) -> None:
    """A response that is all there."""
    response["Content-Length"] = str(len(response.content))
    await _start(send, response)
    await send({"type": "http.response.body", "body": response.content})


async def send_events(receive: Receive, send: Send, response: EventStreamResponse) -> None:
    """Events as they come, until they end, the client is gone, or the server stops."""
    await _start(send, response)
    sending = asyncio.ensure_future(_send_all(send, response.events))
    gone = asyncio.ensure_future(receive())
    gone.add_done_callback(lambda _: sending.cancel())
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await sending
    finally:
        gone.cancel()
    await send({"type": "http.response.body"})


async def send_head(send: Send, response: EventStreamResponse) -> None:
    """What a HEAD request asks for: none of the events is made."""
    await response.events.aclose()
    await _start(send, response)
    await send({"type": "http.response.body"})


async def _send_all(send: Send, events: AsyncGenerator[bytes, None]) -> None:
    """Waits whenever the server does, so that a slow client holds up nothing but its own events."""
    async with contextlib.aclosing(events):
        async for part in events:
            await send({"type": "http.response.body", "body": part, "more_body": True})


async def _start(send: Send, response: HttpResponseBase) -> None:
    headers = [(k.encode("ascii"), v.encode("latin1")) for k, v in response.items()]
    headers += [
        (b"set-cookie", cookie.OutputString().encode("ascii"))
        for cookie in response.cookies.values()
    ]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
