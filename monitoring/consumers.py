"""The WebSocket /ws/monitor: events as they come, and those a client has missed."""

import asyncio
import logging
import uuid
from typing import Any

import redis
from channels.consumer import get_handler_name
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.db import Error as DatabaseError

from monitoring.events import commands
from monitoring.events.events import EventType
from monitoring.events.feed import Feed
from monitoring.events.messages import (
    SocketError,
    connected_text,
    error_text,
    event_text,
    reply_text,
)
from monitoring.events.rate_limit import TokenBucket
from monitoring.events.reader import Reader

logger = logging.getLogger(__name__)

MAX_MESSAGES_PER_SECOND = 50


class MonitorConsumer(AsyncWebsocketConsumer):
    """One socket: answers to its client, and beside them what its reader takes from the feed.

    `scope["principal"]` says whose events it may see.
    """

    # No channel of its own, and so no subscription at Redis: the feed has one for all sockets.
    channel_layer_alias = ""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed
        self._sender: asyncio.Task[None] | None = None
        self._bucket = TokenBucket(MAX_MESSAGES_PER_SECOND)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._owner: str = scope["principal"].owner
        self._reader: Reader = self._feed.join(self._owner, self._wake)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.leave(self._reader)
            if self._sender:
                self._sender.cancel()

    async def dispatch(self, message: Any) -> None:
        """Without Channels' look at the database connections, which takes a thread each time."""
        await getattr(self, get_handler_name(message))(message)

    async def connect(self) -> None:
        await self.accept()
        await self._feed.wait_until_live(settings.REDIS_TIMEOUT_SECONDS)
        await self.send(connected_text(uuid.uuid4().hex, self._feed.last_seq))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            await self._check_rate()
            await self._obey(commands.parse(text_data))
        except SocketError as error:
            await self.send(error_text(error, self._feed.last_seq))

    async def _check_rate(self) -> None:
        if not self._bucket.take():
            # Whoever does not stop is slowed down: nothing is read from it meanwhile.
            await asyncio.sleep(1 / MAX_MESSAGES_PER_SECOND)
            message = f"Send at most {MAX_MESSAGES_PER_SECOND} messages a second; this one is lost."
            raise SocketError("rate_limited", message)

    async def _obey(self, command: commands.Command) -> None:
        match command:
            case commands.Subscribe(types, since):
                self._feed.subscribe(self._reader, types, since)
            case commands.Unsubscribe(types):
                self._feed.unsubscribe(self._reader, types)
            case commands.FilterTask(task_id):
                self._reader.task_id = task_id
            case commands.GetQueueStats():
                await self.send(await self._queue_stats())
            case commands.Ping():
                await self.send(reply_text("pong", self._feed.last_seq, {}))

    async def _queue_stats(self) -> str:
        try:
            reading = await self._feed.stats(EventType.QUEUE_STATS, self._owner)
        except (redis.RedisError, DatabaseError) as exc:
            message = "The queues cannot be read now: ask again in a few seconds."
            raise SocketError("unavailable", message) from exc
        return event_text(reading, self._feed.last_seq)

    def _wake(self) -> None:
        """There is something to take; the sender takes all there is, and ends."""
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_news())

    async def _send_news(self) -> None:
        try:
            while texts := await self._reader.take():
                for text in texts:
                    await self.send(text)
                await asyncio.sleep(0)  # the other sockets' turn
        except (OSError, RuntimeError) as exc:  # the server's word for a socket that it has closed
            logger.debug("A client has left while it was sent to: %s", exc)
        finally:
            self._sender = None
