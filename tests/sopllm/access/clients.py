"""Clients with a key, behind the ASGI handler."""

from collections.abc import Callable
from typing import Any

import httpx
from pytest_django import Settings

from sopllm.access.models import ApiKey
from tests.sopllm.test_handler import talk

HOST = "127.0.0.1"


def key_of(owner: str, *scopes: str, **fields: Any) -> str:
    """A new key of an owner; of the scope `tasks` where none is named."""
    return ApiKey.objects.make(owner, scopes or ("tasks",), **fields)[1]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def request(method: str, path: str, **options: Any) -> httpx.Response:
    """One request to a handler of its own."""

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.request(method, path, **options)

    response: httpx.Response = talk(conversation, HOST)
    return response


Production = Callable[[], None]


def close_to_strangers(settings: Settings) -> None:
    """As with APP_ENV=production: the local machine needs a key too."""
    settings.APP_ENV = "production"
