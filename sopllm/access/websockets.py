"""Who may open a WebSocket: the same callers as of the API, and no pages from elsewhere."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.http.request import split_domain_port, validate_host
from rest_framework.exceptions import APIException, PermissionDenied, ValidationError

from inference.api.deferred_response import InThread
from monitoring.api.principal import Principal, Scope
from monitoring.events import commands
from sopllm.access.identity import Identity
from sopllm.access.open_streams import open_place
from sopllm.exceptions import error_response
from sopllm.handler import Message, Receive, Send

# The arguments are Any since Channels types each message on its own.
Application = Callable[[Any, Any, Any], Awaitable[None]]

# Any of these opens a socket: those of its commands.
_SCOPES = frozenset[Scope]().union(*commands.SCOPES.values())

# Closes the socket of somebody who may stay no longer.
SHUT_OUT = 4401


class WebSocketAccess:
    """Lets in who may come in, as `scope["principal"]`; others get no handshake."""

    def __init__(self, application: Application, identity: Identity, in_thread: InThread) -> None:
        self._application = application
        self._identity = identity
        self._in_thread = in_thread

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                principal = await self._admit(scope)
                await stack.enter_async_context(open_place(principal, self._in_thread))
            except APIException as error:
                await refuse(scope, send, error)
                return
            serving = asyncio.ensure_future(
                self._application({**scope, "principal": principal}, receive, send)
            )
            revoked = asyncio.ensure_future(self._identity.wait_until_revoked(principal))
            try:
                await asyncio.wait({serving, revoked}, return_when=asyncio.FIRST_COMPLETED)
                if not serving.done():
                    await send({"type": "websocket.close", "code": SHUT_OUT})
                await serving
            finally:
                revoked.cancel()
                serving.cancel()

    async def _admit(self, scope: Message) -> Principal:
        """Who opens the socket. Raises APIException for who may not."""
        if not _has_good_origin(scope):
            message = "Pages from this origin may not connect: add it to CSRF_TRUSTED_ORIGINS."
            raise PermissionDenied(message)
        principal = await self._identity.find(scope)
        if principal is None or principal.scopes.isdisjoint(_SCOPES):
            message = f"This needs a key of the scope {' or '.join(sorted(_SCOPES))}."
            raise PermissionDenied(message)
        if scope["query_string"]:
            message = "The socket has no parameters: leave out ? and what follows, and subscribe."
            raise ValidationError(message)
        return principal


async def refuse(scope: Message, send: Send, error: APIException) -> None:
    """Answer the handshake with an error; 403 without a body where the server knows no other."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 4000 + error.status_code})
        return
    response = error_response(error, scope["path"])
    headers = [(name.lower().encode(), value.encode()) for name, value in response.items()]
    start = {"type": "websocket.http.response.start", "status": response.status_code}
    await send({**start, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": response.content})


def _has_good_origin(scope: Message) -> bool:
    """Whether the page that connects, if it is one, comes from where it connects to.

    Browsers name the page's origin, and no other client does. Scheme, host and port are compared,
    as Django does for forms; the host must be an allowed one, since any name may lead here.
    """
    origins = _header_values(scope, b"origin")
    scheme = "https" if scope["scheme"] == "wss" else "http"
    own_origins = {
        f"{scheme}://{host}"
        for host in _header_values(scope, b"host")
        if validate_host(split_domain_port(host)[0], settings.ALLOWED_HOSTS)
    }
    return own_origins.union(settings.CSRF_TRUSTED_ORIGINS).issuperset(origins)


def _header_values(scope: Message, name: bytes) -> list[str]:
    return [value.decode("latin1") for each, value in scope["headers"] if each == name]
