"""Server-Sent Events, read as an EventSource reads them."""

import json
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event; `type` is "" for a comment, and for a hint when to reconnect."""

    type: str
    id: str
    data: Any


class EventParser:
    """Takes bytes as they come from the network, gives whole events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> list[ServerEvent]:
        *blocks, self._rest = (self._rest + received).split(b"\n\n")
        return [_event(block.decode()) for block in blocks]


def read_events(
    http: httpx.Client, task_id: str, last_id: str = ""
) -> Generator[ServerEvent, None, None]:
    """The events of a task's stream as they come; closing the generator closes the connection."""
    headers = {"Accept": "text/event-stream"}
    if last_id:
        headers["Last-Event-ID"] = last_id
    parser = EventParser()
    with http.stream("GET", f"/tasks/{task_id}/stream", headers=headers) as response:
        response.raise_for_status()
        for received in response.iter_bytes():
            yield from parser.feed(received)


class StreamedAnswer:
    """The text that a client has put together from a stream; `last_id` is its SSE cursor."""

    def __init__(self) -> None:
        self.text = ""
        self.last_id = ""
        self.num_tokens = 0
        self.num_restarts = 0
        self.end: ServerEvent | None = None

    def take(self, events: Iterable[ServerEvent]) -> None:
        for event in events:
            self.last_id = event.id or self.last_id
            if event.type == "token":
                self.text += event.data["text"]
                self.num_tokens += 1
            elif event.type == "restart":
                self.text = ""
                self.num_restarts += 1
            elif event.type:
                self.end = event


def _event(block: str) -> ServerEvent:
    fields = dict(_fields(block))
    data = fields.get("data")
    return ServerEvent(
        fields.get("event", ""), fields.get("id", ""), json.loads(data) if data else None
    )


def _fields(block: str) -> Iterator[tuple[str, str]]:
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        yield name, value.removeprefix(" ")
