"""Django behind ASGI: requests in a thread pool, long polls on the event loop.

Django's own ASGI handler makes a thread and a database connection for each request to a synchronous
view; a pool of a few threads with lasting connections serves three to four times as many.
"""

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from django.conf import settings
from django.core import signals
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import BaseHandler
from django.http import HttpResponse, HttpResponseBase, JsonResponse
from django.urls import set_script_prefix

from inference import long_poll
from monitoring.ended import Waiters
from sopllm.exceptions import error_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# An end that is not announced (Redis away) is noticed after this.
_LOOK_AGAIN_SECONDS = 2.0
# A body too large is read to its end, within reason: most clients read no answer before.
_DRAIN_FACTOR = 8


class PooledHandler(BaseHandler):
    """Answers HTTP requests of an ASGI server with Django's synchronous stack."""

    def __init__(self) -> None:
        super().__init__()
        self.load_middleware(is_async=False)
        self._pool = ThreadPoolExecutor(settings.WEB_THREADS, thread_name_prefix="web")
        self._waiters = Waiters()

    def start(self) -> None:
        """Call it when the event loop runs, before the first request."""
        self._waiters.start()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await _read_body(receive)
        if body is None:
            await _send(send, _too_large())
            return
        response = await self._respond(scope, body)
        if getattr(response, "wait_for", None):
            response = await self._respond_after_end(scope, receive, body, response)
        await _send(send, response)

    async def _respond(self, scope: Message, body: bytes) -> HttpResponse:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._respond_in_thread, scope, body)

    def _respond_in_thread(self, scope: Message, body: bytes) -> HttpResponse:
        set_script_prefix(scope.get("root_path", "") or "/")
        signals.request_started.send(sender=self.__class__, scope=scope)
        response = self.get_response(ASGIRequest(scope, io.BytesIO(body)))
        if response.streaming:  # a static file
            response = _collected(response)
        response.close()  # sends request_finished
        return cast(HttpResponse, response)

    async def _respond_after_end(
        self, scope: Message, receive: Receive, body: bytes, first: Any
    ) -> HttpResponse:
        """Ask the view again when the end has come, the time is over, or the client is gone."""
        scope = {**scope, long_poll.REPEAT: True}
        give_up_at = time.monotonic() + first.wait_seconds
        gone = asyncio.ensure_future(receive())
        try:
            with self._waiters.waiting_for(first.wait_for) as ended:
                while True:
                    # Asked first once the waiter stands: the end may have come in between.
                    response = await self._respond(scope, body)
                    left = give_up_at - time.monotonic()
                    if not getattr(response, "wait_for", None) or left <= 0 or gone.done():
                        return response
                    try:
                        await _first_of(ended.wait(), gone, min(left, _LOOK_AGAIN_SECONDS))
                    except asyncio.CancelledError:  # the server stops: say how far it is
                        return response
        finally:
            gone.cancel()


async def _first_of(event: Any, gone: "asyncio.Future[Message]", seconds: float) -> None:
    waiter = asyncio.ensure_future(event)
    await asyncio.wait({waiter, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None when it is larger than MAX_BODY_BYTES."""
    limit = settings.MAX_BODY_BYTES
    parts: list[bytes] = []
    size = 0
    while size <= limit * _DRAIN_FACTOR:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        if not message.get("more_body"):
            break
    return b"".join(parts) if size <= limit else None


async def _send(send: Send, response: HttpResponse) -> None:
    response["Content-Length"] = str(len(response.content))
    headers = [(k.encode("ascii"), v.encode("latin1")) for k, v in response.items()]
    headers += [
        (b"set-cookie", cookie.OutputString().encode("ascii"))
        for cookie in response.cookies.values()
    ]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.content})


def _collected(response: HttpResponseBase) -> HttpResponse:
    content: Iterable[bytes] = response
    whole: Any = HttpResponse(b"".join(content), status=response.status_code)
    whole.headers = response.headers
    whole.cookies = response.cookies
    whole._resource_closers = getattr(response, "_resource_closers", [])
    return cast(HttpResponse, whole)


def _too_large() -> HttpResponse:
    limit = settings.MAX_BODY_BYTES
    message = f"The body is larger than {limit} bytes: send less at a time."
    return JsonResponse(error_body("payload_too_large", message), status=413)
