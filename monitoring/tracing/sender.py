"""What a sender of generations is, and how it fails."""

from typing import Protocol

from monitoring.tracing.generation import Generation

MAX_BATCH = 50


class UnreachableError(Exception):
    """What was to be sent may be taken later; the message says what to do."""


class RefusedError(Exception):
    """What was to be sent is never taken; the message says why."""


class Sender(Protocol):
    """Where the generations go, MAX_BATCH at a time."""

    def prepare(self, generations: list[Generation]) -> None:
        """Make of them what is to be sent."""

    def send(self) -> None:
        """Send what was prepared. Raises UnreachableError, and RefusedError."""
