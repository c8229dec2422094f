"""LiteLLM, set up so that it stays quiet, offline, and out of the way of our own retries."""

import logging
import os
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import cache
from typing import Any

import httpx

from inference.providers.cloud.wire import TooLargeError

# Of one line, of one event, and of a whole answer.
MAX_BYTES = 32 * 2**20
_MAX_ERROR_BYTES = 16 * 2**10
# It would read a .env file, and fetch price and header lists, while it is imported.
_ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    # Its patterns take minutes for 100 KB of a provider's error; ours get a few KB of it.
    "LITELLM_DISABLE_REDACT_SECRETS": "true",
}
# They would print whole requests and answers of other people, or a line for each call.
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "openai")


class RedirectError(httpx.RequestError):
    """A provider sends a request on to another host."""


@cache
def set_up_httpx() -> None:
    """Bound what it reads, and where it sends requests on to, of all clients of the process."""
    _refuse_redirects_elsewhere()
    httpx.Response.aiter_lines = _lines  # type: ignore[assignment, method-assign]
    httpx.Response.aread = _read  # type: ignore[assignment, method-assign]
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _refuse_redirects_elsewhere() -> None:
    """Have POST requests stay with their host: httpx would take no key but Authorization off.

    LiteLLM makes a client of httpx for each kind of provider, so this is done for all of them. An
    address may still be sent on to its own https.
    """
    build = httpx.Client._build_redirect_request

    def checked(self: Any, request: httpx.Request, response: httpx.Response) -> httpx.Request:
        redirect = build(self, request, response)
        before, after = request.url, redirect.url
        is_upgrade = (before.scheme, after.scheme) == ("http", "https") and after.port is None
        is_elsewhere = before.host != after.host or (
            not is_upgrade and (before.scheme, before.port) != (after.scheme, after.port)
        )
        if request.method == "POST" and is_elsewhere:
            raise RedirectError("It sends requests on to another host.", request=request)
        return redirect

    for client in (httpx.Client, httpx.AsyncClient):
        client._build_redirect_request = checked  # type: ignore[method-assign]


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """As Server-Sent Events have them; httpx would also end a line at U+2028 within a text."""
    rest, is_half_end = bytearray(), False
    async for received in response.aiter_bytes():
        part = received.removeprefix(b"\n") if is_half_end else received
        is_half_end = part.endswith(b"\r")  # maybe: of \r\n
        part = part.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        rest += part
        if b"\n" in part:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                yield line.decode("utf-8-sig", errors="replace")
        if len(rest) > MAX_BYTES:
            raise TooLargeError(f"It sent a line of more than {MAX_BYTES} bytes.")
    yield rest.decode("utf-8-sig", errors="replace")


async def _read(response: httpx.Response) -> bytes:
    """The whole body, but no more of an error than anybody needs: LiteLLM searches all of it."""
    if not hasattr(response, "_content"):
        body = bytearray()
        parts: Any = response.aiter_bytes()
        async with aclosing(parts):
            async for part in parts:
                body += part
                if response.is_error and len(body) > _MAX_ERROR_BYTES:
                    del body[_MAX_ERROR_BYTES:]
                    break
        await response.aclose()
        response._content = bytes(body)
    return response._content


@cache
def library() -> Any:
    """The module. The first call takes seconds and 180 MB; only workers make it."""
    os.environ.update(_ENVIRONMENT)
    # Pydantic has something to say of LiteLLM's types, and quotes what a provider has sent.
    for message in ("Item '.*' on TypedDict class", "Pydantic serializer warnings"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.turn_off_message_logging = True
    litellm.disable_hf_tokenizer_download = True
    # What it takes for `max_retries=0` where it asks for embeddings.
    litellm.DEFAULT_MAX_RETRIES = 0  # type: ignore[attr-defined]
    # An answer may repeat itself: LiteLLM would fail it after a hundred equal pieces.
    litellm.REPEATED_STREAMING_CHUNK_LIMIT = sys.maxsize  # type: ignore[attr-defined]
    set_up_httpx()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return litellm


def is_loaded() -> bool:
    """Whether this process has it ready."""
    return library.cache_info().currsize > 0
