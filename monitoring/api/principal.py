"""Who asks: found before the request's body is read, and carried by the request."""

import re
from dataclasses import dataclass
from enum import StrEnum

from rest_framework.request import Request

# "local" belongs to the caller on the service's own machine, "" to nobody.
RESERVED_OWNERS = frozenset({"", "local"})
OWNER_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Scope(StrEnum):
    """What a principal may do; whatever names no scope is denied."""

    TASKS = "tasks"  # its own tasks, conversations, events and logs; embeddings; reading models
    MONITOR = "monitor"  # how the whole service is: events, logs and figures of all owners
    ADMIN = "admin"  # models, presets and keys


ANY_SCOPE = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a principal may use at most; None: no limit.

    `weight`: how large its share is beside those of others; None: 1.
    """

    requests_per_second: float | None = None
    max_pending_tasks: int | None = None
    max_running_tasks: int | None = None
    max_priority: float | None = None
    max_tokens_per_day: int | None = None
    max_usd_per_month: float | None = None
    max_open_streams: int | None = None
    weight: float | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller; `owner` is whose tasks and conversations are its own.

    `name` is the prefix of an API key or the name of a user. `key_digest` is that of the API key,
    `session_key` that of Django's session, by which it was found; the other one is "". `is_staff`:
    a signed-in user who may read and act for all owners.
    """

    name: str
    owner: str
    scopes: frozenset[Scope]
    limits: Limits = NO_LIMITS
    key_digest: str = ""
    session_key: str = ""
    is_staff: bool = False
    is_authenticated: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def credential(self) -> str:
        """Which key or user it was found by; "" for the local machine."""
        if self.key_digest:
            return f"key:{self.name}"
        return f"user:{self.name}" if self.session_key else ""

    def may_act_for(self, owner: str) -> bool:
        """Whether it may read, change and delete the rows of that owner."""
        return self.is_staff or owner == self.owner

    def has_all_of(self, other: "Principal") -> bool:
        """Whether it is of the same owner, and may do whatever the other may."""
        is_as_high = self.is_staff or not other.is_staff
        return self.owner == other.owner and self.scopes >= other.scopes and is_as_high

    @property
    def visible_owner(self) -> str | None:
        """Whose events, logs and figures it sees; None: those of all owners."""
        return None if Scope.MONITOR in self.scopes else self.owner


LOCAL = Principal(name="local", owner="local", scopes=ANY_SCOPE)


def principal_of(request: Request) -> Principal:
    """Who asks; a view that needs a scope is called for no one else."""
    principal = request.user
    assert isinstance(principal, Principal), "the view is open to everybody"
    return principal


def owner_of(request: Request) -> str:
    """The owner of the rows that the request may make."""
    return principal_of(request).owner
