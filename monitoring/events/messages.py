"""Messages of the service on the WebSocket, as JSON text."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypedDict, cast

from monitoring.events import events
from monitoring.events.events import EventType, Timestamp
from monitoring.events.log import LoggedEvent


class EventMessage(TypedDict):
    """An event on the wire; a transient one has the number of the last logged event before it."""

    type: EventType
    seq: int
    timestamp: Timestamp
    data: dict[str, Any]


class EventPage(TypedDict):
    """A page of the log; ask for the next one after `seq`."""

    events: list[EventMessage]
    results: list[EventMessage]
    next: Annotated[str, "uri"] | None
    previous: Annotated[str, "uri"] | None
    seq: int
    has_gap: bool


class SocketError(Exception):
    """The answer to a command that cannot be followed."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


def event_message(event: LoggedEvent) -> EventMessage:
    """An event of the log."""
    assert event.seq is not None, "only transient events have no number"
    return EventMessage(
        type=cast(EventType, event.type),
        seq=event.seq,
        timestamp=event.timestamp,
        data=event.data,
    )


def event_text(event: LoggedEvent, seq: int | None) -> str:
    """An event as JSON, with its number, or that of the last logged event before it."""
    message = {"type": event.type, "seq": seq, "timestamp": event.timestamp, "data": event.data}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def reply_text(reply_type: str, seq: int | None, data: Mapping[str, Any]) -> str:
    """An answer to one client; in ASCII, since it can quote half surrogate pairs of a request."""
    return json.dumps({"type": reply_type, "seq": seq, "timestamp": events.now(), "data": data})


def error_text(error: SocketError, seq: int | None) -> str:
    """An error, with the number of the last event."""
    data = {"error": error.code, "message": error.message, "details": error.details}
    return reply_text("error", seq, data)


def resync_text(since: int) -> str:
    """Says that events up to the number `since` are lost to this client."""
    message = "Some events are lost: read anew what you show; it goes on after `since`."
    return error_text(SocketError("resync", message, {"since": since}), since)


def connected_text(
    connection_id: str, available_events: Iterable[EventType], seq: int | None
) -> str:
    """The greeting of a new socket."""
    message = {
        "type": "connected",
        "connection_id": connection_id,
        "available_events": list(available_events),
        "seq": seq,
        "timestamp": events.now(),
    }
    return json.dumps(message)
