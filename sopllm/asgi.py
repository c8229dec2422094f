"""The ASGI application that the web process serves."""

import os
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sopllm.settings")
django.setup()

from sopllm.handler import PooledHandler, Receive, Send  # noqa: E402 (after Django's set-up)

_http = PooledHandler()


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Dispatch by protocol."""
    if scope["type"] == "http":
        await _http(scope, receive, send)
    elif scope["type"] == "lifespan":
        await _lifespan(receive, send)
    else:
        await send({"type": "websocket.close", "code": 4404})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            _http.start()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
