"""The ASGI application that the web process serves."""

import asyncio
import os
import resource
import sys
from collections.abc import Mapping
from typing import Any

import django
from rest_framework.exceptions import NotFound

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sopllm.settings")
django.setup()

from inference.api import queue_stats  # noqa: E402 after Django's set-up
from monitoring.consumers import MonitorConsumer  # noqa: E402
from monitoring.events.events import EventType  # noqa: E402
from monitoring.events.feed import Feed  # noqa: E402
from monitoring.hardware import gpu  # noqa: E402
from monitoring.logs import service_log  # noqa: E402 after Django's set-up
from sopllm.access.exposure import stop_if_exposed  # noqa: E402 after Django's set-up
from sopllm.access.websockets import WebSocketAccess, refuse  # noqa: E402
from sopllm.handler import PooledHandler, Receive, Send  # noqa: E402

_http = PooledHandler()


def read_stats(event_type: EventType, owner: str | None) -> Mapping[str, Any]:
    """What the feed shows of GPUs and queues."""
    return gpu.stats() if event_type == EventType.GPU_STATS else queue_stats.read(owner)


_monitor = WebSocketAccess(
    MonitorConsumer.as_asgi(feed=Feed(read_stats)), _http.identity, _http.in_thread
)


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Dispatch by protocol."""
    if scope["type"] == "http":
        await _http(scope, receive, send)
    elif scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["path"].removesuffix("/") == "/ws/monitor":
        await _monitor(scope, receive, send)
    else:
        await refuse(scope, send, NotFound("The WebSocket is at /ws/monitor."))


async def _lifespan(receive: Receive, send: Send) -> None:
    exposed: asyncio.Task[None] | None = None
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            service_log.start("web")
            # A thread that has written, which others wait for, gets the interpreter back soon.
            sys.setswitchinterval(0.001)
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            # The reference keeps it alive.
            exposed = asyncio.create_task(stop_if_exposed(_http.in_thread))
        elif message["type"] == "lifespan.shutdown":
            if exposed:
                exposed.cancel()
            await _http.stop()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
