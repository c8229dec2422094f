"""Who asks, from the headers alone: one way for HTTP, streams and WebSockets."""

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlencode

import redis
from django.conf import settings
from django.contrib.auth import get_user
from django.db import Error as DatabaseError
from django.http import HttpRequest
from rest_framework.exceptions import APIException, NotAuthenticated

from inference.api.deferred_response import InThread
from monitoring.api.errors import DatabaseUnavailable, RedisUnavailable
from monitoring.api.principal import (
    LOCAL,
    OWNER_PATTERN,
    RESERVED_OWNERS,
    Limits,
    Principal,
    Scope,
)
from sopllm.access import tickets
from sopllm.access.models import KEY_PATTERN, KEY_START, ApiKey, digest_of
from sopllm.access.tickets import Holder

ASGIScope = MutableMapping[str, Any]

# Open to everybody: pages without data, probes, the sign-in. The admin has a sign-in of its own.
_OPEN = frozenset(
    {"/", "/favicon.ico", "/healthz", "/readyz", "/docs", "/redoc", "/openapi.json"}
    | {"/login", "/logout"}
)
_OPEN_FOLDERS = ("/static/", "/admin/")

# A revoked key ends within 5 s: it is known for so long, and open streams look again so often.
_KNOWN_SECONDS = 3.0
_LOOK_AGAIN_SECONDS = 1.5
_MAX_KNOWN = 10_000

_PROXY_HEADERS = (b"forwarded", b"via", b"x-real-ip")
_TICKET = "ticket"


class UnknownCaller(NotAuthenticated):
    """Nobody is let in; `detail` says what to do."""

    auth_header = "Bearer"


class Identity:
    """Finds principals for one event loop, and remembers those of keys for a few seconds."""

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread
        # By the digest of a key: whom it lets in, None for nobody, and until when that is known.
        self._known: dict[str, tuple[Principal | None, float]] = {}

    async def find(self, scope: ASGIScope) -> Principal | None:
        """Who asks; None where the path is open to everybody. Raises APIException.

        A key comes first, then a ticket, then the local machine, then a signed-in user.
        """
        headers = scope["headers"]
        key = _key(headers)
        # SDKs insist on sending some key: on the local machine, one that is none of ours will do.
        if key and (key.startswith(KEY_START) or not _is_local(scope)):
            principal = await self._of_key(digest_of(key)) if KEY_PATTERN.fullmatch(key) else None
            if principal is None:
                raise UnknownCaller("This API key is unknown, expired or revoked: use another one.")
            return principal
        if _is_open(scope["path"]):
            return None
        if ticket := _take_ticket(scope):
            principal = await self._of_ticket(ticket)
            if principal is None:
                raise UnknownCaller("This ticket was used or has expired: ask for a new one.")
            return principal
        if _is_local(scope):
            return LOCAL
        if session_key := _cookie(headers, settings.SESSION_COOKIE_NAME):
            principal = await self._ask(_of_session, session_key)
            if principal is not None:
                return principal
        raise UnknownCaller(
            "Send an API key, as in `Authorization: Bearer sopllm_…`, or sign in at /login."
        )

    async def wait_until_revoked(self, principal: Principal | None) -> None:
        """Until whoever was let in may no longer do all that it might then.

        While that cannot be looked up, it may.
        """
        may_stay = True
        while may_stay:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            with contextlib.suppress(APIException):
                found = principal and await self._find_again(principal)
                may_stay = principal is None or (found is not None and found.has_all_of(principal))

    async def _find_again(self, holder: Principal | Holder) -> Principal | None:
        """Whom the key or the session of somebody who was let in lets in by now."""
        if holder.key_digest:
            return await self._of_key(holder.key_digest)
        if holder.session_key:
            return await self._ask(_of_session, holder.session_key)
        return LOCAL

    async def _of_key(self, digest: str) -> Principal | None:
        principal, known_until = self._known.get(digest, (None, 0.0))
        if known_until < time.monotonic():
            principal = await self._ask(ApiKey.objects.find, digest)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[digest] = principal, time.monotonic() + _KNOWN_SECONDS
        return principal

    async def _of_ticket(self, ticket: str) -> Principal | None:
        try:
            holder = await self._in_thread(tickets.take, ticket)
        except redis.RedisError as exc:
            raise RedisUnavailable from exc
        return await self._find_again(holder) if holder else None

    async def _ask(self, look_up: Callable[..., Principal | None], key: str) -> Principal | None:
        try:
            found: Principal | None = await self._in_thread(look_up, key)
        except DatabaseError as exc:
            raise DatabaseUnavailable from exc
        return found


def _is_open(path: str) -> bool:
    return (path.rstrip("/") or "/") in _OPEN or path.startswith(_OPEN_FOLDERS)


def is_loopback(host: str) -> bool:
    """Whether an address, or `localhost`, is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_local(scope: ASGIScope) -> bool:
    """Whether it comes from this machine, and through no proxy, while those need no key."""
    client = scope.get("client")
    if settings.APP_ENV != "local" or not client or not is_loopback(client[0]):
        return False
    return not any(
        name in _PROXY_HEADERS or name.startswith(b"x-forwarded-") for name, _ in scope["headers"]
    )


def _of_session(session_key: str) -> Principal | None:
    """The signed-in user of a session of Django."""
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    user: Any = get_user(request)
    if not user.is_active:  # nobody's session, or of a user who was shut out
        return None
    return Principal(
        name=user.get_username(),
        owner=owner_of_user(user),
        scopes=frozenset(Scope) if user.is_staff else frozenset({Scope.TASKS}),
        limits=Limits(**settings.DEFAULT_LIMITS),
        session_key=session_key,
        is_staff=user.is_staff,
    )


def owner_of_user(user: Any) -> str:
    """The name of a user where an owner can have it, and so that of the user's keys; or a number.

    No user can take the number of another one as its name.
    """
    name: str = user.get_username()
    is_number = name.startswith("user-") and name[5:].isdecimal()
    if OWNER_PATTERN.fullmatch(name) and name not in RESERVED_OWNERS and not is_number:
        return name
    return f"user-{user.pk}"


def _key(headers: list[tuple[bytes, bytes]]) -> str:
    """The API key of the request, "" without one."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.decode("latin1").strip()
        if name == b"authorization":
            kind, _, key = value.decode("latin1").partition(" ")
            if kind.lower() == "bearer":
                return key.strip()
    return ""


def _take_ticket(scope: ASGIScope) -> str:
    """The ticket of the query, which has it no longer: no view takes it, and no log shows it."""
    if b"ticket=" not in scope["query_string"]:
        return ""
    text: str = scope["query_string"].decode("latin1")
    query = parse_qs(text, keep_blank_values=True)
    ticket = query.pop(_TICKET, [""])[0]
    scope["query_string"] = urlencode(query, doseq=True).encode()
    return ticket


def _cookie(headers: list[tuple[bytes, bytes]], cookie_name: str) -> str:
    for name, value in headers:
        if name == b"cookie":
            try:
                cookies = SimpleCookie(value.decode("latin1"))
            except CookieError:
                continue
            if cookie_name in cookies:
                found: str = cookies[cookie_name].value
                return found
    return ""
