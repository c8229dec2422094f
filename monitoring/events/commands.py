"""The commands of WebSocket clients, and the errors for anything else."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from monitoring.api.json_parser import object_of
from monitoring.api.principal import Scope
from monitoring.events.events import OF_OWNERS, EventType
from monitoring.events.messages import SocketError

MAX_CHARACTERS = 64 * 1024
_MAX_SEQ = 2**63 - 1
_MAX_QUOTED = 100
_TASK_ID = re.compile("task_[0-9a-f]{32}")


class CommandType(StrEnum):
    SUBSCRIBE = "subscribe"
    UNSUBSCRIBE = "unsubscribe"
    FILTER_TASK = "filter_task"
    GET_QUEUE_STATS = "get_queue_stats"
    PING = "ping"


_OF_EVENTS = frozenset({Scope.TASKS, Scope.MONITOR})
# Any of them opens a command; one that is not named here is closed.
SCOPES: dict[CommandType, frozenset[Scope]] = {
    CommandType.SUBSCRIBE: _OF_EVENTS,
    CommandType.UNSUBSCRIBE: _OF_EVENTS,
    CommandType.FILTER_TASK: _OF_EVENTS,
    CommandType.GET_QUEUE_STATS: _OF_EVENTS,
    CommandType.PING: _OF_EVENTS,
}

_FIELDS: dict[CommandType, set[str]] = {
    CommandType.SUBSCRIBE: {"events", "since"},
    CommandType.UNSUBSCRIBE: {"events"},
    CommandType.FILTER_TASK: {"task_id"},
    CommandType.GET_QUEUE_STATS: set(),
    CommandType.PING: set(),
}


@dataclass(frozen=True, slots=True)
class SocketCommand:
    """`events` are types of events; `since` None: from now on; `task_id` None: of all tasks."""

    type: CommandType
    events: frozenset[str] = frozenset()
    since: int | None = None
    task_id: str | None = None


def available_events(scopes: frozenset[Scope]) -> list[EventType]:
    """What can be subscribed to with the scopes."""
    if Scope.MONITOR in scopes:
        return list(EventType)
    return [each for each in EventType if Scope.TASKS in scopes and each in OF_OWNERS]


def parse(text: str | None, scopes: frozenset[Scope]) -> SocketCommand:
    """The command in a text frame; None stands for a binary one. Raises SocketError.

    A pattern stands for the events alone that the scopes open.
    """
    message = _json_object(text)
    name = message.pop("type", None)
    if not isinstance(name, str) or name not in set(CommandType):
        known = ", ".join(CommandType)
        raise _invalid(f"Unknown type {_quoted(name)}: use one of {known}.")
    command = CommandType(name)
    accepted = SCOPES.get(command, frozenset())
    if scopes.isdisjoint(accepted):
        text = f"{name} needs a key of the scope {' or '.join(sorted(accepted)) or '(none)'}."
        raise SocketError("permission_denied", text)
    if unknown := [field for field in message if field not in _FIELDS[command]]:
        raise _invalid(f"{name} has no field {_quoted(unknown[0])}: check its spelling.")
    if command is CommandType.FILTER_TASK:
        task_id = message.get("task_id", "")
        if task_id is not None and not (isinstance(task_id, str) and _TASK_ID.fullmatch(task_id)):
            text = "task_id must be task_ and 32 hexadecimal digits, or null for all tasks."
            raise _invalid(text)
        return SocketCommand(command, task_id=task_id)
    if "events" not in _FIELDS[command]:
        return SocketCommand(command)
    since = message.get("since")
    is_number = isinstance(since, int) and not isinstance(since, bool)
    if since is not None and not (is_number and 0 <= since <= _MAX_SEQ):
        raise _invalid("since must be the whole number that was the `seq` of an event.")
    names = message.get("events")
    if not isinstance(names, list) or not names:
        raise _invalid('events must be a list of names, such as ["task.*", "gpu_stats"].')
    available = available_events(scopes)
    events = {event for name in names for event in _matching(name, available)}
    return SocketCommand(command, frozenset(events), since)


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        raise _invalid("Send JSON in a text frame, not a binary one.")
    if len(text) > MAX_CHARACTERS:
        raise _invalid(f"The message is too large: send at most {MAX_CHARACTERS} characters.")
    try:
        message = json.loads(text, object_pairs_hook=object_of)
    except RecursionError:
        raise _invalid("The message is nested too deeply.") from None
    except ValueError as exc:
        raise _invalid(f"The message is no valid JSON ({exc}).") from None
    if not isinstance(message, dict):
        raise _invalid('Send a JSON object, such as {"type": "ping"}.')
    return message


def _matching(name: Any, available: Collection[EventType]) -> set[str]:
    """The events that a name stands for: `*`, `task.*` or one itself."""
    if not isinstance(name, str):
        raise _invalid(f"{_quoted(name)} is no name of an event: use a text.")
    is_pattern = name == "*" or name.endswith(".*")
    types = {
        str(each)
        for each in EventType
        if each == name or (is_pattern and each.startswith(name[:-1]))
    }
    if not types:
        known = ", ".join(EventType)
        raise _invalid(f"Unknown event {_quoted(name)}: use * or task.* or some of {known}.")
    if name in types and name not in available:
        message = (
            f"{name} needs a key of the scope {Scope.MONITOR}: leave it out, or use such a key."
        )
        raise SocketError("permission_denied", message)
    return types.intersection(available)


def _invalid(message: str) -> SocketError:
    return SocketError("validation_error", message)


def _quoted(value: Any) -> str:
    """What a client wrote, shortened."""
    text = json.dumps(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"
