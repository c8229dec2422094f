"""System checks: combinations of settings that would fail, or be unsafe, later."""

import ipaddress
import os
from typing import Any
from urllib.parse import urlparse

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

_REDIS_SCHEMES = {"redis", "rediss", "unix"}
_DATABASE_SCHEMES = {"sqlite", "postgres", "postgresql"}

# Names of the contract that this version does not read yet.
_NOT_YET = {
    "LANGFUSE_PUBLIC_KEY": "traces",
    "LANGFUSE_SECRET_KEY": "traces",
    "LANGFUSE_HOST": "traces",
    "OPENAI_API_KEY": "cloud models",
    "ANTHROPIC_API_KEY": "cloud models",
}


@register
def check_access(**_: Any) -> list[CheckMessage]:
    """Nobody but this machine may reach an API that asks for no key."""
    if settings.APP_ENV == "local" and not _is_loopback(settings.SERVER_HOST):
        return [
            Error(
                f"SERVER_HOST is {settings.SERVER_HOST}, but this version has no API keys, so it "
                "listens on loopback only.",
                hint="Set SERVER_HOST=127.0.0.1, and put a proxy with access control before it.",
                id="sopllm.E001",
            )
        ]
    return []


@register
def check_addresses(**_: Any) -> list[CheckMessage]:
    """Addresses that no client library would understand."""
    problems: list[CheckMessage] = []
    if urlparse(settings.REDIS_URL).scheme not in _REDIS_SCHEMES:
        hint = "Use redis://host:6379/0, rediss://… or unix:///path; or leave it out."
        problems.append(Error("REDIS_URL is no Redis address.", hint=hint, id="sopllm.E002"))
    database = os.environ.get("DATABASE_URL", "")
    if database and urlparse(database).scheme not in _DATABASE_SCHEMES:
        hint = "Use postgres://user:password@host:5432/name or sqlite:///path; or leave it out."
        problems.append(Error("DATABASE_URL is not supported.", hint=hint, id="sopllm.E003"))
    return problems


@register
def check_engine(**_: Any) -> list[CheckMessage]:
    """A batch that is larger than the window it is for."""
    if settings.N_BATCH > settings.N_CTX:
        message = f"N_BATCH ({settings.N_BATCH}) is larger than N_CTX ({settings.N_CTX})."
        return [Warning(message, hint="Lower N_BATCH.", id="sopllm.W001")]
    return []


@register
def check_not_yet(**_: Any) -> list[CheckMessage]:
    """Settings that would be silently ignored."""
    return [
        Warning(f"{name} is set, but this version has no {what} yet.", id="sopllm.W002")
        for name, what in _NOT_YET.items()
        if os.environ.get(name)
    ]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
