"""What the service says on a WebSocket, as JSON text."""

import json
from collections.abc import Mapping
from typing import Any, TypedDict

from monitoring.events import events
from monitoring.events.log import LoggedEvent


class EventMessage(TypedDict):
    """An event or reading on the wire; a reading has the number of the last event before it."""

    type: str
    seq: int | None
    timestamp: str
    data: dict[str, Any]


class EventPage(TypedDict):
    """Some of the log, to be followed by what comes after `seq`."""

    events: list[EventMessage]
    results: list[EventMessage]
    next: str | None
    previous: str | None
    seq: int
    has_gap: bool


class SocketError(Exception):
    """What is answered to a client that asked for something that cannot be."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


def event_message(event: LoggedEvent, last_seq: int | None = None) -> EventMessage:
    """A reading, which has no number, gets that of the last event."""
    seq = last_seq if event.seq is None else event.seq
    return EventMessage(type=event.type, seq=seq, timestamp=event.timestamp, data=event.data)


def event_text(event: LoggedEvent, last_seq: int | None = None) -> str:
    """As `event_message`, in JSON."""
    message = event_message(event, last_seq)
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def reply_text(reply_type: str, seq: int | None, data: Mapping[str, Any]) -> str:
    """An answer to one client; in ASCII, since it can quote half surrogate pairs of a request."""
    return json.dumps({"type": reply_type, "seq": seq, "timestamp": events.now(), "data": data})


def error_text(error: SocketError, seq: int | None) -> str:
    data = {"error": error.code, "message": error.message, "details": error.details}
    return reply_text("error", seq, data)


def resync_text(since: int) -> str:
    """Says that events up to the number `since` are lost to this client."""
    message = "Some events are lost: read anew what you show; it goes on after `since`."
    return error_text(SocketError("resync", message, {"since": since}), since)


def connected_text(connection_id: str, seq: int | None) -> str:
    message = {
        "type": "connected",
        "connection_id": connection_id,
        "available_events": [str(event_type) for event_type in events.EventType],
        "seq": seq,
        "timestamp": events.now(),
    }
    return json.dumps(message)
