"""One attempt at an answer, as its trace shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How Langfuse marks a generation."""

    DEFAULT = "DEFAULT"
    WARNING = "WARNING"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Generation:
    """One attempt; those of one task share a trace. Times are nanoseconds since the epoch.

    `trace_id` and `attempt` name it: sent twice, it is there once. `usage` has the names that
    Langfuse adds up: what begins with "input" is the prompt.
    """

    trace_id: str
    attempt: int
    model: str
    parameters: Mapping[str, Any]
    messages: Sequence[Mapping[str, object]]
    output: str | None
    usage: Mapping[str, int] | None
    started_ns: int
    first_token_ns: int | None
    ended_ns: int
    level: Level
    status_message: str | None
    metadata: Mapping[str, Any]
    session_id: str | None
    user_id: str | None
    tags: Sequence[str]
    trace_metadata: Mapping[str, Any]
