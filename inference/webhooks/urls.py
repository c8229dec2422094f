"""The URLs that webhooks may be sent to: how they are written, and which hosts are exempt."""

import re
import time
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv6Address
from string import ascii_letters, digits, punctuation
from urllib.parse import quote, urlsplit

import idna
from django.conf import settings

from inference.webhooks import addresses
from inference.webhooks.addresses import (
    RefusedAddressError,
    SlowNameServerError,
    UnresolvedHostError,
)

MAX_URL_LENGTH = 2048

_PORTS = {"https": 443, "http": 80}
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_ASCII = ascii_letters + digits + punctuation

# How long a request waits for one name; how long all requests of this process may wait in a burst,
# and as a share of the time.
_LOOK_UP_SECONDS = 0.5
_MAX_WAIT_SECONDS = 2.0
_WAIT_SHARE = 0.1
# Until when what was waited so far is that share of the time.
_waited_until = 0.0
_VERDICT_SECONDS = 60.0
_MAX_VERDICTS = 1000
# By host: until when it holds, and why the host is refused.
_verdicts: dict[str, tuple[float, str | None]] = {}


class RefusedUrlError(Exception):
    """No webhook may be sent there; the message says what to do."""


@dataclass(frozen=True, slots=True)
class WebhookUrl:
    """A URL in parts: `host` as it is looked up, `target` with the query, as it is sent."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_exempt(self) -> bool:
        """Whether WEBHOOK_ALLOWED_HOSTS names it: then any address will do, and http."""
        entries = filter(is_exemption, settings.WEBHOOK_ALLOWED_HOSTS)
        exemptions = [exemption(entry) for entry in entries]
        return (self.host, None) in exemptions or (self.host, self.port) in exemptions


def check(url: str) -> None:
    """Raises RefusedUrlError for a URL that no webhook could be sent to.

    Its host is looked up where that takes no longer than a request may wait; in any case it is
    looked up, and its addresses are checked, when the webhook is sent.
    """
    if not settings.WEBHOOK_SECRETS:
        raise RefusedUrlError(
            "Webhooks cannot be signed here: set WEBHOOK_SECRETS, or leave webhook_url out."
        )
    check_address(url)


def check_address(url: str) -> None:
    """Raises RefusedUrlError for a URL of another form, or of a host that must not be asked."""
    parsed = parse(url)
    if not parsed.is_exempt and (refusal := _refusal(parsed.host)):
        raise RefusedUrlError(refusal)


def parse(url: str) -> WebhookUrl:
    """The parts of a URL whose form is right; raises RefusedUrlError."""
    if len(url) > MAX_URL_LENGTH:
        raise RefusedUrlError(f"It is longer than {MAX_URL_LENGTH} characters: use a shorter one.")
    if any(not each.isprintable() or each in " \\" for each in url):
        raise RefusedUrlError("It has blanks, backslashes or control characters: leave them out.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise RefusedUrlError(f"It is no URL: {exc}.") from exc
    if parts.scheme not in _PORTS:
        raise RefusedUrlError("It must begin with https://.")
    if "@" in parts.netloc:
        raise RefusedUrlError("It must not have a user name or a password: verify signatures.")
    if "#" in url:
        raise RefusedUrlError("It must not have a fragment: leave out # and what follows.")
    if port == 0:
        raise RefusedUrlError("Its port must be from 1 to 65535.")
    host = _host(parts.hostname or "")
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    target = quote(path if parts.path else f"/{path}", safe=_ASCII)
    parsed = WebhookUrl(parts.scheme, host, port or _PORTS[parts.scheme], target)
    if parts.scheme == "http" and not (settings.WEBHOOK_ALLOW_HTTP or parsed.is_exempt):
        raise RefusedUrlError("Use https: anybody on the way can read what goes over http.")
    return parsed


def is_exemption(entry: str) -> bool:
    """Whether it is a host, or a host and a port."""
    try:
        exemption(entry)
    except (ValueError, RefusedUrlError):
        return False
    return True


@cache
def exemption(entry: str) -> tuple[str, int | None]:
    """Host and port, or None for any, of an item of WEBHOOK_ALLOWED_HOSTS.

    Raises ValueError, or RefusedUrlError, when it is no such thing.
    """
    is_bare = isinstance(addresses.literal(entry), IPv6Address)
    parts = urlsplit(f"//[{entry}]" if is_bare else f"//{entry}")
    if parts.path or parts.query or "@" in parts.netloc or parts.port == 0:
        raise ValueError(entry)
    return _host(parts.hostname or ""), parts.port


def _host(host: str) -> str:
    """As it is looked up: in lower case, and in ASCII."""
    try:
        host = host if host.isascii() else idna.encode(host, uts46=True).decode()
    except idna.IDNAError as exc:
        raise RefusedUrlError("Its host is no international name: check its spelling.") from exc
    host = host.lower().removesuffix(".")
    address = addresses.literal(host)
    if isinstance(address, IPv6Address):
        if address.scope_id:
            raise RefusedUrlError("Its address must not have a zone.")
        return str(address)
    # Other spellings of an address serve to hide it.
    if address is not None and host != str(address):
        raise RefusedUrlError(f"{host} is another spelling of {address}: write it like that.")
    if address is None and not _NAME.fullmatch(host):
        raise RefusedUrlError("It names no host that there can be: check its spelling.")
    return host


def _refusal(host: str) -> str | None:
    """Why the host is refused; of a name, as it was within the last minute."""
    global _waited_until
    started = time.monotonic()
    until, refusal = _verdicts.get(host, (0.0, None))
    if started < until:
        return refusal
    is_name = addresses.literal(host) is None
    if is_name and _waited_until - started >= _MAX_WAIT_SECONDS / _WAIT_SHARE:
        return None
    refusal = None
    try:
        addresses.checked(host, _LOOK_UP_SECONDS)
    except RefusedAddressError as error:
        refusal = str(error)
    except SlowNameServerError:
        pass
    except UnresolvedHostError:
        refusal = f"{host} does not resolve: check its spelling, or try again in a minute."
    waited = time.monotonic() - started
    _waited_until = max(_waited_until, started) + waited / _WAIT_SHARE
    if len(_verdicts) >= _MAX_VERDICTS:
        _verdicts.clear()
    _verdicts[host] = (time.monotonic() + _VERDICT_SECONDS, refusal)
    return refusal
