"""Answers of servers that speak OpenAI's protocol themselves, as vLLM, SGLang and llama-server do.

Without LiteLLM, which takes nearly three times as much of the processor for a call.
"""

import asyncio
from collections.abc import AsyncGenerator
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpx

from inference.models import RegisteredModel
from inference.providers.cloud import call, stream
from inference.providers.cloud.library import set_up_httpx
from inference.providers.cloud.wire import ProviderError
from monitoring.redis.per_process import PerProcess

_MAX_IDLE_CONNECTIONS = 100
# Of a page that is read beside the answers.
_MAX_LINES = 20_000


async def events(
    model: RegisteredModel, body: dict[str, Any], key: str | None
) -> AsyncGenerator[Any, None]:
    """One call, to its last event.

    The events are JSON of OpenAI's shape, if the server keeps to it. Raises httpx.HTTPError, or
    ProviderError. All calls of a process are made on one event loop.
    """
    request = _client().build_request(
        "POST",
        f"{model.config['base_url'].rstrip('/')}/chat/completions",
        json=body,
        headers=_authorization(key),
        timeout=call.timeout_of(model) + call.TIMEOUT_MARGIN_SECONDS,
    )
    response = await _client().send(request, stream=True, follow_redirects=True)
    try:
        if response.is_error:
            text = (await response.aread()).decode(errors="replace")
            error = ProviderError(text, response.status_code)
            error.headers = response.headers
            raise error
        async for event in stream.server_sent_events(response.aiter_lines()):
            yield event
    finally:
        await response.aclose()


async def get(url: str, key: str | None, seconds: float) -> tuple[int, list[str]]:
    """The status and the first lines of a page. Raises httpx.HTTPError, or TimeoutError."""
    headers = _authorization(key)
    request = _client().build_request("GET", url, headers=headers, timeout=seconds)
    async with asyncio.timeout(seconds):
        response = await _client().send(request, stream=True)
        lines: list[str] = []
        try:
            async for line in response.aiter_lines():
                lines.append(line)
                if len(lines) == _MAX_LINES:
                    break
        finally:
            await response.aclose()
        return response.status_code, lines


def _authorization(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


@PerProcess
def _client() -> httpx.AsyncClient:
    """Keeps connections, and no cookies: models of several owners may be at one host."""
    set_up_httpx()
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=_MAX_IDLE_CONNECTIONS, keepalive_expiry=30
    )
    client = httpx.AsyncClient(limits=limits)
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return client
