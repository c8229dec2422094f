"""One POST to a checked address, without redirects, in limited time."""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpcore

from inference.retries import retry_after_seconds
from inference.webhooks import addresses
from inference.webhooks.urls import WebhookUrl

_READ_BYTES = 1024


class UnansweredError(Exception):
    """There was no answer; the message says what happened."""


@dataclass(frozen=True, slots=True)
class WebhookResponse:
    """The status of the receiver's response; `retry_after` in seconds."""

    status_code: int
    retry_after: float | None


def post(url: WebhookUrl, headers: dict[str, str], body: bytes, seconds: float) -> WebhookResponse:
    """Send the body; `seconds` are for all of it, from the look-up of the host to the answer.

    Raises RefusedAddressError when the host leads where nothing may be sent, and UnansweredError.
    """
    give_up_at = time.monotonic() + seconds
    address = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
    backend = _CheckedBackend(url, give_up_at)
    lines = list({"host": url.authority, **headers}.items())
    try:
        with (
            httpcore.ConnectionPool(ssl_context=_ssl_context(), network_backend=backend) as pool,
            pool.stream("POST", address, headers=lines, content=body) as response,
        ):
            # Enough for a receiver to be done with its answer: the status has said all of it.
            num_bytes = 0
            with contextlib.suppress(OSError, httpcore.NetworkError, httpcore.ProtocolError):
                for chunk in response.iter_stream():
                    num_bytes += len(chunk)
                    if num_bytes >= _READ_BYTES:
                        break
            named = {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in response.headers}
            return WebhookResponse(response.status, retry_after_seconds(named))
    except TimeoutError as exc:
        raise UnansweredError(f"There was no answer within {seconds:g} s.") from exc
    except (OSError, httpcore.NetworkError, httpcore.ProtocolError) as exc:
        raise UnansweredError(str(exc) or type(exc).__name__) from exc


@cache
def _ssl_context() -> ssl.SSLContext:
    """Trusts what certifi does, and the system; SSL_CERT_FILE names further authorities."""
    context = httpcore.default_ssl_context()
    context.load_default_certs()
    return context


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to an address that was checked, not to a name that is looked up once more."""

    def __init__(self, url: WebhookUrl, give_up_at: float) -> None:
        self._url = url
        self._give_up_at = give_up_at

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Tries the addresses one after the other, each for its share of the time that is left."""
        left = self._give_up_at - time.monotonic()
        checked = addresses.checked(host, left, exempt=self._url.is_exempt)
        failure: OSError = TimeoutError()
        for index, address in enumerate(checked):
            share = (self._give_up_at - time.monotonic()) / (len(checked) - index)
            try:
                connection = socket.create_connection((str(address), port), max(share, 0.001))
            except OSError as exc:
                failure = exc
            else:
                return _BoundedStream(connection, self._give_up_at)
        raise failure


class _BoundedStream(httpcore.NetworkStream):
    """A connection all of whose reads and writes share one deadline: dripping gains no time."""

    def __init__(self, connection: socket.socket, give_up_at: float) -> None:
        self._connection = connection
        self._give_up_at = give_up_at

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._in_time().recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        left = memoryview(buffer)
        while left:
            try:
                left = left[self._in_time().send(left) :]
            except TimeoutError:
                raise
            except OSError as exc:
                # After this one httpcore looks for an answer that came before the end of the body.
                raise httpcore.WriteError(str(exc)) from exc

    def close(self) -> None:
        self._connection.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            wrapped = ssl_context.wrap_socket(self._in_time(), server_hostname=server_hostname)
        except BaseException:
            self.close()
            raise
        return _BoundedStream(wrapped, self._give_up_at)

    def get_extra_info(self, info: str) -> Any:
        return None

    def _in_time(self) -> socket.socket:
        """The connection, which waits no longer than until the deadline."""
        left = self._give_up_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection
