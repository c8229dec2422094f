"""The WebSocket route behind a real server, and a client to talk to it."""

import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from websockets.sync.client import ClientConnection, connect

from monitoring.events import events
from monitoring.events.events import EventType
from monitoring.redis import outbox
from sopllm.asgi import application
from sopllm.http_protocol import LimitedHttpProtocol
from sopllm.processes import WEBSOCKET_MAX_BYTES, WEBSOCKET_PROTOCOL
from tests.conftest import wait_until

TASK_ID = f"task_{'0' * 32}"
OTHER_TASK_ID = f"task_{'1' * 32}"

Message = dict[str, Any]


class LiveServer:
    """uvicorn with the options of `make run`, in a thread; may be stopped and started again."""

    def __init__(self, application: Callable[..., Awaitable[None]] = application) -> None:
        self._application = application
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    def start(self, **options: Any) -> None:
        usual: dict[str, Any] = {
            "http": LimitedHttpProtocol,
            "ws": WEBSOCKET_PROTOCOL,
            "lifespan": "off",
            "log_level": "warning",
            "ws_max_size": WEBSOCKET_MAX_BYTES,
            "ws_per_message_deflate": False,
            "timeout_graceful_shutdown": 3,
        }
        config = uvicorn.Config(self._application, port=self.port, **{**usual, **options})
        server = self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=server.run)
        self._thread.start()
        wait_until(lambda: server.started)
        self.port = server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def num_connections(self) -> int:
        assert self._server is not None
        return len(self._server.server_state.connections)

    @contextmanager
    def client(self, path: str = "/ws/monitor", **options: Any) -> Iterator["Client"]:
        """A client that has got its first message."""
        with connect(f"ws://127.0.0.1:{self.port}{path}", proxy=None, **options) as connection:
            yield Client(connection)


class Client:
    """One socket; `connected` is the first message. It does not hear of `ignored` types."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.ignored: frozenset[str] = frozenset()
        self.connected = self.hear()

    def hear(self, seconds: float = 20.0) -> Message:
        """The next message."""
        while True:
            message: Message = json.loads(self.connection.recv(timeout=seconds))
            if message["type"] not in self.ignored:
                return message

    def say(self, message_type: str, **fields: Any) -> None:
        self.connection.send(json.dumps({"type": message_type, **fields}))

    def subscribe(self, *names: str, since: int | None = None) -> None:
        fields = {} if since is None else {"since": since}
        self.say("subscribe", events=list(names), **fields)

    def pong(self) -> Message:
        """Wait until the server has read all that was said; fail when anything else comes."""
        self.say("ping")
        message = self.hear()
        assert message["type"] == "pong", message
        return message

    def error(self) -> Message:
        """The data of the error that comes next; fail when anything else comes."""
        message = self.hear()
        assert message["type"] == "error", message
        data: Message = message["data"]
        assert set(data) == {"error", "message", "details"}
        return data


def tell(
    number: int, owner: str | None = "local", task_id: str = TASK_ID, model: str = "m"
) -> None:
    """Publish a task.queued whose attempt is the number."""
    data = events.TaskQueued(
        task_id=task_id,
        model=model,
        queue="gpu",
        priority=1,
        attempt=number,
        estimated_start_at=None,
        estimated_finish_at=None,
        eta_seconds=None,
    )
    events.publish(EventType.TASK_QUEUED, data, owner)


def tell_all(numbers: range) -> None:
    """Publish several, and wait until they are out."""
    for number in numbers:
        tell(number)
    outbox.flush()


def progress(num_tokens: int, task_id: str = TASK_ID, owner: str | None = "local") -> None:
    """Publish a task.progress, a transient event."""
    data = events.TaskProgress(
        task_id=task_id, attempt=1, tokens_generated=num_tokens, partial_text="a text"
    )
    events.publish(EventType.TASK_PROGRESS, data, owner)


def told(messages: list[Message]) -> list[int]:
    """The numbers of the `task.queued` among messages."""
    return [each["data"]["attempt"] for each in messages if each["type"] == "task.queued"]
