"""The WebSocket /ws/monitor: events as they come, and those a client has missed."""

import asyncio
import contextlib
import uuid
from typing import Any

import redis
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.db import Error as DatabaseError

from monitoring.api.principal import Principal
from monitoring.events.commands import CommandType, available_events, parse
from monitoring.events.cursor import Write
from monitoring.events.events import EventType
from monitoring.events.feed import Feed
from monitoring.events.frames import EXTENSION, joined, text
from monitoring.events.messages import (
    SocketError,
    connected_text,
    error_text,
    event_text,
    reply_text,
)
from monitoring.events.rate_limit import TokenBucket

MAX_MESSAGES_PER_SECOND = 50


class MonitorConsumer(AsyncWebsocketConsumer):
    """One socket: replies to its client, and beside them the events that its cursor takes.

    `scope["principal"]` says whose events it sees.
    """

    # No channel of its own, and so no subscription at Redis: the feed has one for all sockets.
    channel_layer_alias = ""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed
        self._sender: asyncio.Task[None] | None = None
        self._bucket = TokenBucket(MAX_MESSAGES_PER_SECOND)

    async def connect(self) -> None:
        await self.accept()
        scope: Any = self.scope  # typed without what a middleware adds
        self._principal: Principal = scope["principal"]
        self._owner = self._principal.visible_owner
        server = scope.get("extensions", {}).get(EXTENSION)
        self._write_frames: Write | None = server["write"] if server else None
        self._cursor = self._feed.join(self._owner, self._start_sender, self._write)
        await self._feed.wait_until_live(settings.REDIS_TIMEOUT_SECONDS)
        with _client_may_leave():
            events = available_events(self._principal.scopes)
            await self.send(connected_text(uuid.uuid4().hex, events, self._feed.last_seq))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Do what the client asks for, or say what is wrong with it."""
        try:
            reply = await self._reply(text_data)
        except SocketError as error:
            reply = error_text(error, self._feed.last_seq)
        if reply is not None:
            with _client_may_leave():
                await self.send(reply)

    async def disconnect(self, code: int) -> None:
        if self._sender:
            self._sender.cancel()
        self._feed.leave(self._cursor)

    async def _reply(self, text: str | None) -> str | None:
        """Raises SocketError."""
        if not self._bucket.take():
            # A client that does not stop is slowed down: nothing is read from it meanwhile.
            await asyncio.sleep(1 / MAX_MESSAGES_PER_SECOND)
            message = f"Send at most {MAX_MESSAGES_PER_SECOND} messages a second; this one is lost."
            raise SocketError("rate_limited", message)
        command = parse(text, self._principal.scopes)
        match command.type:
            case CommandType.SUBSCRIBE:
                self._cursor.subscribe(command.events, command.since)
            case CommandType.UNSUBSCRIBE:
                self._cursor.unsubscribe(command.events)
            case CommandType.FILTER_TASK:
                self._cursor.task_id = command.task_id
            case CommandType.PING:
                return reply_text("pong", self._feed.last_seq, {})
            case CommandType.GET_QUEUE_STATS:
                try:
                    stats = await self._feed.stats(EventType.QUEUE_STATS, self._owner)
                except (redis.RedisError, DatabaseError) as exc:
                    message = "The queues cannot be read now: ask again in a few seconds."
                    raise SocketError("unavailable", message) from exc
                return event_text(stats, self._feed.last_seq)
        return None

    def _write(self, frames: bytes) -> bool:
        """Write them at once, if the server can and nothing waits to be sent before."""
        write = self._write_frames
        return write is not None and self._sender is None and write(frames)

    def _start_sender(self) -> None:
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_events())

    async def _send_events(self) -> None:
        """Send all that there is for this socket, and end."""
        try:
            with _client_may_leave():
                while frames := await self._cursor.take():
                    if self._write_frames is None:
                        for frame in frames:
                            await self.send(text(frame))
                    else:
                        for some in joined(frames):
                            message: Any = {"type": EXTENSION, "frames": some}
                            await self.base_send(message)
                    await asyncio.sleep(0)  # the other sockets' turn
        finally:
            self._sender = None


def _client_may_leave() -> contextlib.suppress:
    """Suppresses the server's errors for a socket that it has closed: `disconnect` comes next."""
    return contextlib.suppress(OSError, RuntimeError)
