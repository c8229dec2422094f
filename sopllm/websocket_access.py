"""Who may open a WebSocket: the same callers as of the API, and no pages from elsewhere."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from sopllm.access import LOCAL_OWNER, Principal
from sopllm.exceptions import error_body
from sopllm.handler import Message, Receive, Send

# The arguments are Any since Channels types each message on its own.
Application = Callable[[Any, Any, Any], Awaitable[None]]


class WebSocketAccess:
    """Lets in who may come in, as `scope["principal"]`; others get no handshake."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if not _has_good_origin(scope):
            message = "Pages from this origin may not connect: add its host to ALLOWED_HOSTS."
            await refuse(scope, send, 403, "permission_denied", message)
        elif (principal := _authenticated(scope)) is None:
            message = "There are no API keys in this version: set APP_ENV=local."
            await refuse(scope, send, 401, "authentication_required", message)
        else:
            await self._application({**scope, "principal": principal}, receive, send)


async def refuse(scope: Message, send: Send, status: int, code: str, message: str) -> None:
    """Answer the handshake with an error; 403 without a body where the server knows no other."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 4000 + status})
        return
    headers = [(b"content-type", b"application/json")]
    body = json.dumps(error_body(code, message)).encode()
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def _has_good_origin(scope: Message) -> bool:
    """Browsers name the page's origin; what sends none is no browser."""
    origins = [value.decode("latin1") for name, value in scope["headers"] if name == b"origin"]
    return all(_is_allowed(origin) for origin in origins)


def _is_allowed(origin: str) -> bool:
    try:
        host, _ = split_domain_port(urlsplit(origin).netloc)
    except ValueError:
        return False
    return bool(host) and validate_host(host, settings.ALLOWED_HOSTS)


def _authenticated(scope: Message) -> Principal | None:
    """Without API keys, whoever reaches a local installation is its owner."""
    return LOCAL_OWNER if settings.APP_ENV == "local" else None
