"""Django behind ASGI: requests in a thread pool, deferred responses on the event loop.

Who asks is found first, from the headers: of others no body is read.

Django's own ASGI handler makes a thread and a database connection for each request to a synchronous
view; a pool of a few threads with lasting connections serves three to four times as many.
"""

import asyncio
import contextlib
import io
import logging
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import IO, Any
from urllib.parse import urlencode

from django.conf import settings
from django.core import signals
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import BaseHandler
from django.http import (
    FileResponse,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
)
from django.urls import set_script_prefix
from rest_framework.exceptions import APIException

from inference.api.deferred_response import DeferredResponse, InThread
from inference.openai.file_views import UPLOAD_PATH
from monitoring.api.errors import LimitReached
from monitoring.api.principal import Principal, Scope
from monitoring.database_threads import DatabaseThreads
from monitoring.streams.follower import Follower
from sopllm.access.identity import Identity
from sopllm.access.open_streams import open_place
from sopllm.access.rate_limit import RateLimiter
from sopllm.exceptions import error_json, error_response

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Too large a body is still read, up to this many times the limit: most clients send all of it
# before they read an answer.
_DRAIN_FACTOR = 8
# A body may take REQUEST_TIMEOUT_SECONDS, and a second more for each so many bytes.
_MIN_BYTES_PER_SECOND = 64 * 1024
_MAX_UPLOADS_PER_OWNER = 2
_UPLOAD_WAIT_SECONDS = 5
# What is read ahead for a client that takes a file slowly.
_FILE_PART_BYTES = 32 * 1024
# From somebody unknown, who may sign in.
_MAX_ANONYMOUS_BYTES = 64 * 1024


class PooledHandler(BaseHandler):
    """Answers HTTP requests of an ASGI server with Django's synchronous stack."""

    def __init__(self) -> None:
        super().__init__()
        self.load_middleware(is_async=False)
        self._threads = DatabaseThreads(settings.WEB_THREADS, "web")
        self._follower = Follower()
        self._rate_limiter = RateLimiter()
        self.in_thread = self._threads.run
        self.identity = Identity(self.in_thread)
        self._num_uploads: Counter[str] = Counter()

    async def stop(self) -> None:
        """Call it after the last request."""
        await self._follower.close()
        await self._rate_limiter.close()
        await self._threads.close()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            scope["principal"] = await self.identity.find(scope)
        except APIException as error:
            await _send_whole(send, _refusal(scope, error))
            return
        principal: Principal | None = scope["principal"]
        allowance = principal and await self._rate_limiter.take(principal)
        if allowance and allowance.wait_seconds:
            message = f"Your key allows {allowance.limit:g} requests a second: come again later."
            response: Any = error_response(
                LimitReached(message, allowance.wait_seconds, "requests_per_second"), scope["path"]
            )
        else:
            async with self._body(scope, receive) as body:
                is_refused = isinstance(body, HttpResponse)
                response = body if is_refused else await self.in_thread(self._respond, scope, body)
        async with contextlib.AsyncExitStack() as stack:
            is_deferred = isinstance(response, DeferredResponse)
            content_type = response.get("Content-Type", "")
            if is_deferred and content_type.startswith("text/event-stream"):
                try:
                    await stack.enter_async_context(open_place(principal, self.in_thread))
                except LimitReached as error:
                    await self.in_thread(response.refuse)
                    response = error_response(error, scope["path"])
            if allowance:
                for name, value in allowance.headers().items():
                    response[name] = value
            if isinstance(response, DeferredResponse):
                await self._send_deferred(scope, receive, send, response)
            else:
                await _send_whole(send, response)

    @contextlib.asynccontextmanager
    async def _body(
        self, scope: Message, receive: Receive
    ) -> AsyncGenerator[IO[bytes] | HttpResponse, None]:
        """The whole body, of an upload on the disk; or the error to answer with."""
        path, principal = scope["path"], scope["principal"]
        is_upload = scope["method"] == "POST" and path.removesuffix("/") == UPLOAD_PATH
        if not is_upload or principal is None or Scope.TASKS not in principal.scopes:
            limit = settings.MAX_BODY_BYTES if principal else _MAX_ANONYMOUS_BYTES
            yield await _read_body(path, receive, limit, io.BytesIO())
        elif self._num_uploads[principal.owner] == _MAX_UPLOADS_PER_OWNER:
            message = f"You send {_MAX_UPLOADS_PER_OWNER} files already: wait for one of them."
            refusal = LimitReached(message, _UPLOAD_WAIT_SECONDS, "uploads")
            yield error_response(refusal, path)
        else:
            self._num_uploads[principal.owner] += 1
            try:
                # Without a name, so that nothing is left of it.
                with tempfile.TemporaryFile(dir=settings.FILES_DIR) as file:
                    limit = settings.MAX_FILE_BYTES + _MAX_ANONYMOUS_BYTES
                    yield await _read_body(path, receive, limit, file, self.in_thread)
            finally:
                self._num_uploads[principal.owner] -= 1

    def _respond(self, scope: Message, body: IO[bytes]) -> Any:
        set_script_prefix(scope.get("root_path", "") or "/")
        signals.request_started.send(sender=self.__class__, scope=scope)
        request = ASGIRequest(scope, body)
        # Of a body that was sent in chunks, it is not known before.
        request.META["CONTENT_LENGTH"] = str(body.seek(0, io.SEEK_END))
        body.seek(0)
        response: Any = self.get_response(request)
        if isinstance(response, FileResponse):
            response = StaticFile(response)
        response.close()  # sends request_finished
        return response

    async def _send_deferred(
        self, scope: Message, receive: Receive, send: Send, response: DeferredResponse
    ) -> None:
        """Send its parts as they come, until they end, the client is gone, or the server stops.

        Also until the client may stay no longer.
        """
        sending = asyncio.ensure_future(self._send_parts(scope, send, response))
        gone = asyncio.ensure_future(receive())
        shut_out = asyncio.ensure_future(self.identity.wait_until_revoked(scope["principal"]))
        for ending in (gone, shut_out):
            ending.add_done_callback(lambda _: sending.cancel())
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await sending
        finally:
            gone.cancel()
            shut_out.cancel()
        await send({"type": "http.response.body"})

    async def _send_parts(self, scope: Message, send: Send, response: DeferredResponse) -> None:
        """Waits whenever the server does: a slow client holds up nothing but its own response."""
        has_begun = False
        try:
            async with contextlib.aclosing(response.parts(self._follower, self.in_thread)) as parts:
                async for part in parts:
                    if not has_begun:
                        has_begun = True
                        await _send_head(send, response)
                    if scope["method"] == "HEAD":
                        return
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except Exception as error:
            if has_begun:
                raise
            failure = error_response(error, scope["path"])
            failure["Content-Length"] = str(len(failure.content))
            await _send_head(send, failure)
            await send({"type": "http.response.body", "body": failure.content, "more_body": True})


class StaticFile(DeferredResponse):
    """A file of WhiteNoise, read as fast as the client takes it."""

    def __init__(self, response: FileResponse) -> None:
        super().__init__(status=response.status_code)
        self.headers = response.headers
        self._file = response.file_to_stream

    async def parts(self, follower: Follower, in_thread: InThread) -> AsyncGenerator[bytes, None]:
        yield b""  # sends the head
        if self._file is not None:  # as for 304
            with self._file:
                while part := await in_thread(self._file.read, _FILE_PART_BYTES):
                    yield part


async def _read_body(
    path: str, receive: Receive, limit: int, body: IO[bytes], in_thread: InThread | None = None
) -> IO[bytes] | HttpResponse:
    """Write the whole body there; the error to answer with when it is too large, or too slow.

    Onto a disk it is written in a thread.
    """
    size = 0
    try:
        async with asyncio.timeout(settings.REQUEST_TIMEOUT_SECONDS) as deadline:
            give_up_at = deadline.when() or 0.0
            while size <= limit * _DRAIN_FACTOR:
                received = await receive()
                if received["type"] == "http.disconnect":
                    return HttpResponse(status=400)  # to nobody
                part = received.get("body", b"")
                size += len(part)
                deadline.reschedule(give_up_at + size / _MIN_BYTES_PER_SECOND)
                if size <= limit and in_thread:
                    await in_thread(body.write, part)
                elif size <= limit:
                    body.write(part)
                if not received.get("more_body"):
                    break
    except TimeoutError:
        message = f"The body is too slow: send at least {_MIN_BYTES_PER_SECOND} bytes a second."
        response = error_json(path, 408, "request_timeout", message)
        response["Connection"] = "close"
        return response
    except OSError:
        logger.exception("FILES_DIR cannot be written")
        message = "The file cannot be stored, the disk may be full: try again later."
        return error_json(path, 503, "unavailable", message)
    if size > limit:
        message = f"The body is larger than {limit} bytes: send less at a time."
        return error_json(path, 413, "payload_too_large", message)
    return body


def _refusal(scope: Message, error: APIException) -> HttpResponse:
    """Of a browser that opens a page, the way to the sign-in; for others the error."""
    if error.status_code == 401 and scope["method"] == "GET" and _wants_page(scope):
        address = scope["path"] + (f"?{query}" if (query := scope["query_string"].decode()) else "")
        return HttpResponseRedirect(f"{settings.LOGIN_URL}?{urlencode({'next': address})}")
    return error_response(error, scope["path"])


def _wants_page(scope: Message) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


async def _send_whole(send: Send, response: HttpResponse) -> None:
    response["Content-Length"] = str(len(response.content))
    await _send_head(send, response)
    await send({"type": "http.response.body", "body": response.content})


async def _send_head(send: Send, response: HttpResponseBase) -> None:
    headers = [(k.encode("ascii"), v.encode("latin1")) for k, v in response.items()]
    headers += [
        (b"set-cookie", cookie.OutputString().encode("ascii"))
        for cookie in response.cookies.values()
    ]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
