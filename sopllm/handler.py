"""Django behind ASGI: requests in a thread pool, long polls and streams on the event loop.

Django's own ASGI handler makes a thread and a database connection for each request to a synchronous
view; a pool of a few threads with lasting connections serves three to four times as many.
"""

import asyncio
import contextlib
import io
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from django.conf import settings
from django.core import signals
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import BaseHandler
from django.db import close_old_connections
from django.http import HttpResponse, HttpResponseBase, JsonResponse
from django.urls import set_script_prefix

from inference.api import deferred_response, task_stream
from inference.api.deferred_response import Errand, ErrandResponse
from inference.api.task_stream import EventStreamResponse
from monitoring.streams.ended import Waiters
from monitoring.streams.follower import StreamReader
from sopllm.exceptions import error_body, error_response
from sopllm.sending import Message, Receive, Send, send_events, send_head, send_whole

T = TypeVar("T")

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
        self._reader = StreamReader()

    def start(self) -> None:
        """Call it when the event loop runs, before the first request."""
        self._waiters.start()

    async def stop(self) -> None:
        """Call it after the last request."""
        await self._reader.close()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await _read_body(receive)
        if body is None:
            await send_whole(send, _too_large())
            return
        scope = {**scope, task_stream.READER: self._reader, task_stream.IN_THREAD: self._in_thread}
        response = await self._respond(scope, body)
        if isinstance(response, EventStreamResponse):
            if scope["method"] == "HEAD":
                await send_head(send, response)
            else:
                await send_events(receive, send, response)
            return
        if isinstance(response, ErrandResponse):
            response = await self._run_errand(scope, receive, response.errand)
        elif getattr(response, "wait_for", None):
            response = await self._respond_after_end(scope, receive, body, response)
        await send_whole(send, response)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function where requests are answered; it may use the database."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, _with_database, function, *arguments)

    async def _respond(self, scope: Message, body: bytes) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._respond_in_thread, scope, body)

    def _respond_in_thread(self, scope: Message, body: bytes) -> HttpResponseBase:
        set_script_prefix(scope.get("root_path", "") or "/")
        signals.request_started.send(sender=self.__class__, scope=scope)
        response: HttpResponseBase = self.get_response(ASGIRequest(scope, io.BytesIO(body)))
        if response.streaming and not isinstance(response, EventStreamResponse):  # a static file
            response = _collected(response)
        response.close()  # sends request_finished
        return response

    async def _run_errand(self, scope: Message, receive: Receive, errand: Errand) -> HttpResponse:
        """What the errand brings, unless the time is over, or the client is gone."""
        try:
            with self._waiters.waiting_for(errand.key) as ended, _hang_up(receive) as gone:
                await self._in_thread(errand.start)
                give_up_at = time.monotonic() + errand.seconds
                response: HttpResponse | None = None
                with contextlib.suppress(asyncio.CancelledError):  # the server stops
                    while response is None and await _is_to_look(ended, gone, give_up_at):
                        response = await self._in_thread(errand.collect)
                return await self._in_thread(errand.give_up) if response is None else response
        except Exception as error:  # noqa: BLE001 (nothing of Django's stands around this)
            return error_response(error, scope["path"])

    async def _respond_after_end(
        self, scope: Message, receive: Receive, body: bytes, first: Any
    ) -> HttpResponse:
        """Ask the view again when the end has come, and now and then until the time is over."""
        scope = {**scope, deferred_response.REPEAT: True}
        give_up_at = time.monotonic() + first.wait_seconds
        with self._waiters.waiting_for(first.wait_for) as ended, _hang_up(receive) as gone:
            # Asked first once the waiter stands: the end may have come in between.
            response: HttpResponse = await self._respond(scope, body)
            with contextlib.suppress(asyncio.CancelledError):  # the server stops: say how far it is
                while getattr(response, "wait_for", None) and await _is_to_look(
                    ended, gone, give_up_at
                ):
                    response = await self._respond(scope, body)
            return response


@contextlib.contextmanager
def _hang_up(receive: Receive) -> Iterator["asyncio.Future[Message]"]:
    """Done when the client is gone."""
    gone = asyncio.ensure_future(receive())
    try:
        yield gone
    finally:
        gone.cancel()


async def _is_to_look(
    ended: asyncio.Event, gone: "asyncio.Future[Message]", give_up_at: float
) -> bool:
    """Whether it is time to look how far it is; False when nobody waits any more."""
    left = give_up_at - time.monotonic()
    if left <= 0 or gone.done():
        return False
    waiter = asyncio.ensure_future(ended.wait())
    either: set[asyncio.Future[Any]] = {waiter, gone}
    seconds = min(left, _LOOK_AGAIN_SECONDS)
    await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    return not gone.done()


def _with_database(function: Callable[..., T], *arguments: Any) -> T:
    """As at the end of a request: a connection that failed is not used again."""
    try:
        return function(*arguments)
    finally:
        close_old_connections()


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
