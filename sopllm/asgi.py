"""The ASGI application that the web process serves."""

import os
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sopllm.settings")
django.setup()

from monitoring import logs  # noqa: E402 after Django's set-up
from monitoring.consumers import MonitorConsumer  # noqa: E402
from monitoring.feed.feed import Feed  # noqa: E402
from sopllm.handler import PooledHandler  # noqa: E402
from sopllm.sending import Receive, Send  # noqa: E402
from sopllm.websocket_access import WebSocketAccess, refuse  # noqa: E402

_http = PooledHandler()
_monitor = WebSocketAccess(MonitorConsumer.as_asgi(feed=Feed()))


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Dispatch by protocol."""
    if scope["type"] == "http":
        await _http(scope, receive, send)
    elif scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["path"].removesuffix("/") == "/ws/monitor":
        await _monitor(scope, receive, send)
    else:
        await refuse(scope, send, 404, "not_found", "The WebSocket is at /ws/monitor.")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            logs.start("web")
            _http.start()
        elif message["type"] == "lifespan.shutdown":
            await _http.stop()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
