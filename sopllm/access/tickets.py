"""Tickets: let a browser in once, where it can send no key, as in the address of a WebSocket."""

import json
import secrets
from dataclasses import dataclass

from monitoring.api.principal import Principal
from monitoring.redis.client import client

SECONDS = 60


@dataclass(frozen=True, slots=True)
class Holder:
    """By what the one who asked for a ticket was let in: both are "" on the local machine."""

    key_digest: str
    session_key: str


def make(principal: Principal) -> str:
    """A ticket for once within SECONDS. Raises redis.RedisError."""
    ticket = secrets.token_urlsafe(32)
    holder = {"key_digest": principal.key_digest, "session_key": principal.session_key}
    client().set(f"ticket:{ticket}", json.dumps(holder), ex=SECONDS)
    return ticket


def take(ticket: str) -> Holder | None:
    """Who holds the ticket, which is gone then; None when it is. Raises redis.RedisError."""
    text = client().getdel(f"ticket:{ticket}")
    return Holder(**json.loads(text)) if text else None
