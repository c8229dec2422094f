"""Django behind ASGI, as the server calls it."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.contrib.staticfiles import finders
from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from inference.lifecycle import finish
from inference.loading import requests
from inference.models import GenerationTask, RegisteredModel
from sopllm.asgi import application
from sopllm.handler import PooledHandler
from tests.conftest import Valkey
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed

pytestmark = pytest.mark.django_db(transaction=True)

NewTask = Callable[..., GenerationTask]
Conversation = Callable[[httpx.AsyncClient], Awaitable[Any]]


def talk(conversation: Conversation, host: str = "127.0.0.1") -> Any:
    """Run a conversation with a handler of its own, on a new event loop."""

    async def run() -> Any:
        handler = PooledHandler()
        transport = httpx.ASGITransport(handler)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            try:
                return await conversation(client)
            finally:
                await handler.stop()

    return asyncio.run(run())


def get(path: str, host: str = "127.0.0.1", **headers: str) -> httpx.Response:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(path, headers=headers)

    response: httpx.Response = talk(conversation, host)
    return response


def assert_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error", "message", "details", "trace_id"}
    assert response.json()["error"] == code


def test_task_goes_through_the_whole_stack(new_task: NewTask) -> None:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        body = {"model": "echo", "prompt": "ünï"}
        made = await client.post("/api/v1/tasks", json=body)
        return await client.get(f"/api/v1/tasks/{made.json()['task_id']}/report")

    new_task()
    response = talk(conversation)
    assert response.status_code == 200
    assert response.json()["prompt"] == "ünï"
    assert response.headers["content-length"] == str(len(response.content))


def test_too_large_a_body_is_refused_in_words() -> None:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/api/v1/tasks", content=11 * 1024 * 1024 * b" ")

    assert_error(talk(conversation), 413, "payload_too_large")


def test_endless_body_is_not_read_to_its_end() -> None:
    num_read = 0

    async def receive() -> dict[str, Any]:
        nonlocal num_read
        num_read += 1
        return {"type": "http.request", "body": 1024 * 1024 * b" ", "more_body": True}

    sent = asyncio.run(call(receive, "/api/v1/tasks"))
    assert sent[0]["status"] == 413
    assert 10 < num_read < 100


async def call(receive: Callable[[], Awaitable[dict[str, Any]]], path: str = "/") -> list[Any]:
    """Call the handler as a server does; what it sent."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1")]
    scope: dict[str, Any] = {
        "type": "http",
        "client": ("127.0.0.1", 1),
        "method": "GET",
        "path": path.partition("?")[0],
        "headers": headers,
    }
    scope |= {"query_string": path.partition("?")[2].encode()}
    handler = PooledHandler()
    await handler(scope, receive, send)
    await handler.stop()
    return sent


@pytest.mark.parametrize("by_header", [True, False])
def test_wait_answers_when_the_task_ends(new_task: NewTask, by_header: bool) -> None:
    task = new_task()

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        path = f"/api/v1/tasks/{task.pk}"
        headers = {"Prefer": "wait=30"} if by_header else {}
        waiting = asyncio.create_task(
            client.get(path if by_header else f"{path}?wait=30", headers=headers)
        )
        # Others are served while it waits.
        assert (await client.get(path)).json()["status"] == "pending"
        assert not waiting.done()
        await asyncio.to_thread(end, task)
        return await waiting

    started = time.monotonic()
    response = talk(conversation)
    assert response.json()["status"] == "completed"
    assert response.json()["result"]["text"] == "an answer"
    assert time.monotonic() - started < 15


def end(task: GenerationTask) -> None:
    finish.complete(claimed(task), answer(), TIMINGS)
    connections.close_all()


def test_more_wait_than_there_are_threads(new_task: NewTask) -> None:
    tasks = [new_task() for _ in range(settings.WEB_THREADS * 3)]

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        waiting = [
            asyncio.create_task(client.get(f"/api/v1/tasks/{task.pk}?wait=30")) for task in tasks
        ]
        assert (await client.get("/healthz")).status_code == 200
        for task in tasks:
            await asyncio.to_thread(end, task)
        return [await one for one in waiting]

    assert {response.json()["status"] for response in talk(conversation)} == {"completed"}


def test_end_of_the_wait_shows_the_task_as_it_is(new_task: NewTask) -> None:
    started = time.monotonic()
    response = get(f"/api/v1/tasks/{new_task().pk}?wait=0.2")
    assert (response.status_code, response.json()["status"]) == (200, "pending")
    assert time.monotonic() - started >= 0.2


def test_ended_task_is_not_waited_for(new_task: NewTask) -> None:
    task = new_task()
    finish.cancel(task)
    started = time.monotonic()
    assert get(f"/api/v1/tasks/{task.pk}?wait=60").json()["status"] == "cancelled"
    assert time.monotonic() - started < 15


def test_end_is_noticed_without_redis(new_task: NewTask, valkey: Valkey) -> None:
    task = new_task()
    valkey.stop()

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        waiting = asyncio.create_task(client.get(f"/api/v1/tasks/{task.pk}?wait=30"))
        await asyncio.to_thread(end, task)
        return await waiting

    assert talk(conversation).json()["status"] == "completed"


@pytest.mark.parametrize("succeeds", [True, False])
def test_wait_answers_when_the_model_is_loaded_or_cannot_be(valkey: Valkey, succeeds: bool) -> None:
    model = RegisteredModel.objects.create(name="weights", provider="local")
    path = "/api/v1/models/load?wait=30"

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        waiting = asyncio.create_task(client.post(path, json={"model": "weights"}))
        while not await asyncio.to_thread(is_requested):
            assert not waiting.done()
        await asyncio.to_thread(serve)
        return await waiting

    def is_requested() -> bool:
        model.refresh_from_db()
        connections.close_all()
        return model.requested == "load"

    def serve() -> None:
        statuses = RegisteredModel.Status
        model.set_status(statuses.LOADED if succeeds else statuses.ERROR, why="as tried")
        requests.end(model, RegisteredModel.Request.LOAD)
        connections.close_all()

    started = time.monotonic()
    response = talk(conversation)
    assert response.status_code == 202
    body = response.json()
    assert (body["status"], body["requested"]) == ("loaded" if succeeds else "error", None)
    assert time.monotonic() - started < 15
    model.refresh_from_db()
    assert model.requested == ""  # what is asked again after the wait asks for nothing


def test_client_that_left_is_not_waited_for(new_task: NewTask) -> None:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b""},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    started = time.monotonic()
    asyncio.run(call(receive, f"/api/v1/tasks/{new_task().pk}?wait=60"))
    assert messages == []
    assert time.monotonic() - started < 15


def test_static_file_is_served() -> None:
    response = get("/static/rest_framework/css/bootstrap.min.css")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/css")
    path = finders.find("rest_framework/css/bootstrap.min.css")
    assert isinstance(path, str)
    assert response.content == Path(path).read_bytes()
    assert int(response.headers["content-length"]) == len(response.content) > 100_000


def test_static_file_that_is_known_is_not_sent_again() -> None:
    path = "/static/rest_framework/css/bootstrap.min.css"
    response = get(path, **{"If-None-Match": get(path).headers["etag"]})
    assert response.status_code == 304
    assert response.content == b""


def test_cookies_are_sent() -> None:
    response = get("/admin/login/")
    assert response.status_code == 200
    assert "csrftoken" in response.cookies


@pytest.mark.parametrize(
    "path", ["/nothing", "/api/v1/nothing", "/api/v2/tasks", "/static/none.js"]
)
def test_unknown_address_is_told_in_json(path: str) -> None:
    assert_error(get(path), 404, "not_found")


@pytest.mark.parametrize("path", ["/api/v1/tasks", "/healthz", "/nothing"])
def test_unknown_host_is_refused_in_json(path: str) -> None:
    assert_error(get(path, host="evil.example"), 400, "validation_error")


def test_unknown_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await application({"type": "websocket", "path": "/ws/other"}, receive, send)

    asyncio.run(run())
    assert sent == [{"type": "websocket.close", "code": 4404}]


def test_errors_of_the_handler_say_so_in_json() -> None:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/api/v1/tasks", content=json.dumps([1]).encode())

    assert_error(talk(conversation), 415, "unsupported_media_type")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_database_that_is_away_is_no_fault_of_ours(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OperationalError("the database system is starting up")

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        body = {"model": "echo", "prompt": "words"}
        return await client.request(method, "/api/v1/tasks", json=body)

    monkeypatch.setattr(BaseDatabaseWrapper, "connect", fail)
    response = talk(conversation)
    assert_error(response, 503, "unavailable")
    assert response.headers["retry-after"] == "2"


def test_web_process_imports_nothing_heavy() -> None:
    heavy = [
        *("litellm", "openai", "langfuse", "huggingface_hub", "pynvml"),
        *("llama_cpp", "numpy", "torch", "sentence_transformers"),
    ]
    code = f"import sys, sopllm.asgi, sopllm.urls; print(set({heavy}) & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert process.stdout == b"set()\n"
