"""How many streams and sockets an owner may have open."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from pytest_django import Settings
from websockets.exceptions import InvalidStatus

from inference.models import GenerationTask, RegisteredModel
from monitoring.api.errors import LimitReached
from monitoring.api.principal import LOCAL, Limits, Principal, Scope
from monitoring.redis.client import client as redis_client
from sopllm.access import open_streams
from sopllm.access.open_streams import open_place
from tests.conftest import Valkey, wait_until
from tests.live_server import LiveServer
from tests.sopllm.access.clients import bearer, close_to_strangers, key_of

pytestmark = pytest.mark.django_db(transaction=True)

PLACES = "open_streams:alice"


def limited(max_open_streams: int | None, owner: str = "alice") -> Principal:
    limits = Limits(max_open_streams=max_open_streams)
    return Principal(name=owner, owner=owner, scopes=frozenset({Scope.TASKS}), limits=limits)


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


@pytest.fixture
def server(valkey: Valkey, settings: Settings) -> Iterator[LiveServer]:
    close_to_strangers(settings)
    live_server = LiveServer()
    live_server.start()
    yield live_server
    live_server.stop()


def test_streams_and_sockets_of_an_owner_have_a_limit(
    server: LiveServer, new_task: Callable[..., GenerationTask]
) -> None:
    headers = bearer(key_of("alice", max_open_streams=2))
    other_key = bearer(key_of("alice", max_open_streams=2))
    bobs = bearer(key_of("bob", max_open_streams=1))
    url = f"http://127.0.0.1:{server.port}/api/v1/tasks/{new_task(owner='alice').pk}/stream"
    bobs_url = f"http://127.0.0.1:{server.port}/api/v1/tasks/{new_task(owner='bob').pk}/stream"

    with httpx.Client(trust_env=False, timeout=20) as http, ExitStack() as open_now:
        me = f"http://127.0.0.1:{server.port}/api/v1/keys/me"
        first = ExitStack()
        assert first.enter_context(http.stream("GET", url, headers=headers)).status_code == 200
        open_now.enter_context(server.client(additional_headers=other_key))
        assert http.get(me, headers=headers).json()["open_streams"] == 2
        for each in (headers, other_key):
            refused = http.get(url, headers=each)
            assert (refused.status_code, refused.json()["error"]) == (429, "rate_limited")
            assert int(refused.headers["retry-after"]) > 0
            with pytest.raises(InvalidStatus) as socket, server.client(additional_headers=each):
                pass
            assert socket.value.response.status_code == 429
            assert int(socket.value.response.headers["Retry-After"]) > 0
        # Long polls are no streams, and another owner has places of its own.
        assert http.get(url.replace("/stream", "?wait=0.1"), headers=headers).status_code == 200
        stream = open_now.enter_context(http.stream("GET", bobs_url, headers=bobs))
        assert stream.status_code == 200
        first.close()
        wait_until(lambda: open_streams.num_open("alice") == 1)
        stream = open_now.enter_context(http.stream("GET", url, headers=headers))
        assert stream.status_code == 200
    wait_until(lambda: open_streams.num_open("alice") == 0)


def test_chat_without_a_place_leaves_no_task(server: LiveServer, echo: RegisteredModel) -> None:
    headers = bearer(key_of("alice", max_open_streams=0))
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    refused = httpx.post(url, json=body, headers=headers, trust_env=False)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert GenerationTask.objects.get().status == "cancelled"


def test_response_outlives_a_refused_stream_that_did_not_ask_for_it(
    server: LiveServer, echo: RegisteredModel
) -> None:
    headers = bearer(key_of("alice", max_open_streams=0))
    url = f"http://127.0.0.1:{server.port}/v1/responses"
    body = {"model": "echo", "input": "Hello", "background": True}
    with httpx.Client(trust_env=False, headers=headers) as http:
        made = http.post(url, json=body).json()
        assert http.get(f"{url}/{made['id']}?stream=true").status_code == 429
        assert http.get(f"{url}/{made['id']}").json()["status"] == "queued"
        assert http.post(url, json=body | {"stream": True}).status_code == 429
    assert set(GenerationTask.objects.values_list("status", flat=True)) == {"pending", "cancelled"}


def test_without_a_limit_there_is_any_number(valkey: Valkey) -> None:
    async def open_many() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for principal in [None, LOCAL, limited(None)] * 10:
                await stack.enter_async_context(open_place(principal, in_thread))

    asyncio.run(open_many())


def test_place_of_a_killed_process_is_free_within_a_minute(valkey: Valkey) -> None:
    async def lease_of_one() -> tuple[str, float]:
        async with open_place(limited(1), in_thread):
            [(place, lease_until)] = redis_client().zrange(PLACES, 0, -1, withscores=True)
            assert 0 < redis_client().ttl(PLACES) <= 60
            return place, lease_until

    place, lease_until = asyncio.run(lease_of_one())
    seconds, _ = redis_client().time()
    assert 0 < lease_until - seconds <= 60
    redis_client().zadd(PLACES, {place: lease_until})  # a process that is killed leaves it there
    with pytest.raises(LimitReached):
        asyncio.run(lease_of_one())
    redis_client().zadd(PLACES, {place: seconds - 1})
    asyncio.run(lease_of_one())


def test_open_stream_keeps_its_place(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_streams, "_RENEW_SECONDS", 0.01)

    async def hold() -> None:
        async with open_place(limited(1), in_thread):
            redis_client().flushall()  # as by a Valkey that came back empty
            await asyncio.to_thread(wait_until, lambda: open_streams.num_open("alice") == 1)

    asyncio.run(hold())
    assert open_streams.num_open("alice") == 0


def test_without_redis_everybody_gets_a_place(valkey: Valkey) -> None:
    valkey.stop()

    async def open_two() -> None:
        async with open_place(limited(1), in_thread), open_place(limited(1), in_thread):
            assert open_streams.num_open("alice") is None

    asyncio.run(open_two())
