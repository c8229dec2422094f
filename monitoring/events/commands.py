"""What a client may say on the WebSocket, and what it is told when it says something else."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from monitoring.events.events import EventType
from monitoring.events.messages import SocketError

MAX_CHARACTERS = 64 * 1024
_MAX_SEQ = 2**63 - 1
_MAX_QUOTED = 100
_TASK_ID = re.compile("task_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Subscribe:
    """`types` of events from now on, or those after the number `since` too."""

    types: frozenset[str]
    since: int | None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    types: frozenset[str]


@dataclass(frozen=True, slots=True)
class FilterTask:
    """None: the events of all tasks."""

    task_id: str | None


@dataclass(frozen=True, slots=True)
class GetQueueStats:
    pass


@dataclass(frozen=True, slots=True)
class Ping:
    pass


Command = Subscribe | Unsubscribe | FilterTask | GetQueueStats | Ping


def parse(text: str | None) -> Command:
    """The command in a text frame; None stands for a binary one. Raises SocketError."""
    message = _json_object(text)
    name = message.pop("type", None)
    if not isinstance(name, str) or name not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        raise _invalid(f"Unknown type {_quoted(name)}: use one of {known}.")
    fields, make = _COMMANDS[name]
    if unknown := [field for field in message if field not in fields]:
        raise _invalid(f"{name} has no field {_quoted(unknown[0])}: check its spelling.")
    return make(message)


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        raise _invalid("Send JSON in a text frame, not a binary one.")
    if len(text) > MAX_CHARACTERS:
        raise _invalid(f"The message is too large: send at most {MAX_CHARACTERS} characters.")
    try:
        message = json.loads(text)
    except RecursionError:
        raise _invalid("The message is nested too deeply.") from None
    except ValueError as exc:
        raise _invalid(f"The message is no valid JSON ({exc}).") from None
    if not isinstance(message, dict):
        raise _invalid('Send a JSON object, such as {"type": "ping"}.')
    return message


def _subscribe(message: dict[str, Any]) -> Subscribe:
    since = message.get("since")
    is_number = isinstance(since, int) and not isinstance(since, bool)
    if since is not None and not (is_number and 0 <= since <= _MAX_SEQ):
        raise _invalid("since must be the whole number that was the `seq` of an event.")
    return Subscribe(_types(message), since)


def _unsubscribe(message: dict[str, Any]) -> Unsubscribe:
    return Unsubscribe(_types(message))


def _filter_task(message: dict[str, Any]) -> FilterTask:
    task_id = message.get("task_id", "")
    if task_id is not None and not (isinstance(task_id, str) and _TASK_ID.fullmatch(task_id)):
        raise _invalid("task_id must be task_ and 32 hexadecimal digits, or null for all tasks.")
    return FilterTask(task_id)


_COMMANDS: dict[str, tuple[set[str], Callable[[dict[str, Any]], Command]]] = {
    "subscribe": ({"events", "since"}, _subscribe),
    "unsubscribe": ({"events"}, _unsubscribe),
    "filter_task": ({"task_id"}, _filter_task),
    "get_queue_stats": (set(), lambda _: GetQueueStats()),
    "ping": (set(), lambda _: Ping()),
}


def _types(message: dict[str, Any]) -> frozenset[str]:
    names = message.get("events")
    if not isinstance(names, list) or not names:
        raise _invalid('events must be a list of names, such as ["task.*", "gpu_stats"].')
    return frozenset().union(*map(_matching, names))


def _matching(name: Any) -> set[str]:
    """The events that a name stands for: `*`, `task.*` or one itself."""
    types = {str(event_type) for event_type in EventType}
    if not isinstance(name, str):
        raise _invalid(f"{_quoted(name)} is no name of an event: use a text.")
    if name == "*" or name.endswith(".*"):
        types = {each for each in types if each.startswith(name[:-1])}
    else:
        types &= {name}
    if not types:
        known = ", ".join(EventType)
        raise _invalid(f"Unknown event {_quoted(name)}: use * or task.* or some of {known}.")
    return types


def _invalid(message: str) -> SocketError:
    return SocketError("validation_error", message)


def _quoted(value: Any) -> str:
    """What a client wrote, shortened."""
    text = json.dumps(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"
