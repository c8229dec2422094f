"""System checks: combinations of settings that would fail, or be unsafe, later."""

import os
import sqlite3
from typing import Any
from urllib.parse import urlparse

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from inference.webhooks.signing import is_secret
from inference.webhooks.urls import is_exemption

_REDIS_SCHEMES = {"redis", "rediss", "unix"}
_DATABASE_SCHEMES = {"sqlite", "postgres", "postgresql"}
_LANGFUSE_KEYS = ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY")
_MIN_KEY_CHARS = 32
_MIN_SQLITE = (3, 35)


@register
def check_production(**_: Any) -> list[CheckMessage]:
    """Settings that would let strangers in, or sign for the service."""
    if settings.APP_ENV == "local":
        return []
    problems: list[CheckMessage] = []
    if len(settings.SECRET_KEY) < _MIN_KEY_CHARS:
        message = f"SECRET_KEY needs at least {_MIN_KEY_CHARS} characters."
        problems.append(Error(message, hint="`openssl rand -hex 32` prints one.", id="sopllm.E001"))
    if "*" in settings.ALLOWED_HOSTS:
        hint = "Name the hosts by which clients reach the service, as llm.example.org."
        problems.append(Error("ALLOWED_HOSTS has *.", hint=hint, id="sopllm.E010"))
    return problems


@register
def check_addresses(**_: Any) -> list[CheckMessage]:
    """Addresses of a scheme that no client library here supports."""
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
def check_sqlite(**_: Any) -> list[CheckMessage]:
    """Claims read what they change, by RETURNING."""
    is_used = settings.DATABASES["default"]["ENGINE"] == "sopllm.sqlite"
    if not is_used or sqlite3.sqlite_version_info >= _MIN_SQLITE:
        return []
    message = f"Python's SQLite is {sqlite3.sqlite_version}, and 3.35 is needed."
    hint = "Use a newer Python build, or PostgreSQL by DATABASE_URL."
    return [Error(message, hint=hint, id="sopllm.E009")]


@register
def check_encryption_keys(**_: Any) -> list[CheckMessage]:
    """A key that can be guessed protects nothing."""
    if all(len(key) >= _MIN_KEY_CHARS for key in settings.ENCRYPTION_KEYS):
        return []
    message = f"Each of ENCRYPTION_KEYS needs at least {_MIN_KEY_CHARS} characters."
    return [Error(message, hint="`openssl rand -hex 32` prints a good one.", id="sopllm.E004")]


@register
def check_webhooks(**_: Any) -> list[CheckMessage]:
    """Secrets of another format, and hosts that can stand in no URL."""
    problems: list[CheckMessage] = []
    if not all(is_secret(secret) for secret in settings.WEBHOOK_SECRETS):
        message = "An item of WEBHOOK_SECRETS is no secret of Standard Webhooks."
        hint = "It is whsec_ followed by what `openssl rand -base64 32` prints."
        problems.append(Error(message, hint=hint, id="sopllm.E005"))
    for name in ("WEBHOOK_ALLOWED_HOSTS", "PROVIDER_ALLOWED_HOSTS"):
        if wrong := [host for host in getattr(settings, name) if not is_exemption(host)]:
            message = f"{name} has {wrong[0]!r}, which is no host."
            hint = "Give a host or host:port, such as hooks.internal or 10.1.2.3:8080."
            problems.append(Error(message, hint=hint, id="sopllm.E008"))
    return problems


@register
def check_engine(**_: Any) -> list[CheckMessage]:
    """A batch larger than the context window."""
    if settings.N_BATCH > settings.N_CTX:
        message = f"N_BATCH ({settings.N_BATCH}) is larger than N_CTX ({settings.N_CTX})."
        return [Warning(message, hint="Lower N_BATCH.", id="sopllm.W001")]
    return []


@register
def check_tracing(**_: Any) -> list[CheckMessage]:
    """Settings with which no trace would arrive."""
    keys = {name: getattr(settings, name) for name in _LANGFUSE_KEYS}
    missing = [name for name, key in keys.items() if not key]
    problems: list[CheckMessage] = []
    if len(missing) == 1:
        message = f"{missing[0]} is not set, but its counterpart is."
        hint = "Set both to trace generations with Langfuse, or none."
        problems.append(Error(message, hint=hint, id="sopllm.E006"))
    if not missing and urlparse(settings.LANGFUSE_HOST).scheme not in {"http", "https"}:
        hint = "Use https://cloud.langfuse.com or the address of your own server."
        problems.append(Error("LANGFUSE_HOST is no web address.", hint=hint, id="sopllm.E007"))
    return problems
