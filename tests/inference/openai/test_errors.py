"""Every error below /v1 has OpenAI's shape, whoever raises it."""

from typing import Any

import httpx
import pytest
from pytest_django import Settings
from rest_framework.test import APIClient

from inference.errors import ErrorCode
from inference.models import GenerationTask, RegisteredModel
from inference.openai.errors import TaskNotCompleted
from monitoring.api.principal import Limits, Principal, Scope
from tests.conftest import Valkey, client_of
from tests.sopllm.access.clients import bearer, key_of, request

pytestmark = pytest.mark.django_db(transaction=True)

CHAT = "/v1/chat/completions"
BODY = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}


def assert_error(response: Any, status: int, kind: str, code: str) -> None:
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert (response.status_code, error["type"], error["code"]) == (status, kind, code)
    assert error["message"]


def test_strangers_are_told_before_their_body_is_read(settings: Settings, valkey: Valkey) -> None:
    settings.APP_ENV = "production"
    for path in (CHAT, "/v1/nothing", "/v1"):
        response = request("POST", path, json={})
        assert_error(response, 401, "authentication_error", "invalid_api_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_key_without_the_scope_is_refused(valkey: Valkey) -> None:
    key = key_of("alice", Scope.MONITOR)
    for method, path in (("POST", CHAT), ("GET", "/v1/models")):
        response = request(method, path, headers=bearer(key))
        assert_error(response, 403, "permission_error", "insufficient_permissions")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/models/gone/", 404, "model_not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/gone", 405, "method_not_allowed"),
    ],
)
def test_routes_that_are_not_there(
    api: APIClient, method: str, path: str, status: int, code: str
) -> None:
    assert_error(api.generic(method, path), status, "invalid_request_error", code)


def test_bodies_that_cannot_be_read(valkey: Valkey) -> None:
    def post(content: bytes, content_type: str = "application/json") -> httpx.Response:
        return request("POST", CHAT, content=content, headers={"Content-Type": content_type})

    kind = "invalid_request_error"
    assert_error(post(b"{"), 400, kind, "invalid_value")
    assert_error(post(b"a=b", "text/plain"), 415, kind, "unsupported_media_type")
    assert_error(post(11 * 1024 * 1024 * b" "), 413, kind, "payload_too_large")


@pytest.mark.parametrize("body", ['"text"', '["a"]', "42", "null", ""])
@pytest.mark.parametrize(
    "path",
    [
        *("chat/completions", "completions", "embeddings", "rerank", "responses", "batches"),
        *("messages", "messages/count_tokens"),
    ],
)
def test_body_that_is_no_object_is_refused(api: APIClient, path: str, body: str) -> None:
    response = api.generic("POST", f"/v1/{path}", body, content_type="application/json")
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_limits_say_when_to_come_again(echo: RegisteredModel, valkey: Valkey) -> None:
    alice = client_of(
        Principal("a key", "alice", frozenset(Scope), Limits(max_pending_tasks=0, max_priority=5))
    )
    response = alice.post(CHAT, BODY, format="json")
    assert_error(response, 429, "rate_limit_error", "rate_limit_exceeded")
    assert int(response["Retry-After"]) > 0
    response = alice.post(CHAT, BODY, format="json", headers={"X-Priority": "6"})
    assert_error(response, 400, "invalid_request_error", "invalid_value")
    assert not GenerationTask.objects.exists()


def test_full_queue_says_when_to_come_again(
    api: APIClient, echo: RegisteredModel, settings: Settings
) -> None:
    settings.MAX_PENDING_TASKS = 1
    response = api.post(CHAT, BODY | {"n": 2}, format="json")
    assert_error(response, 503, "server_error", "queue_full")
    assert int(response["Retry-After"]) > 0


def test_each_failure_of_a_task_has_a_status() -> None:
    for code in ErrorCode:
        task = GenerationTask(error_code=code, error="It went wrong.")
        failure = TaskNotCompleted(task, [task])
        assert 400 <= failure.status_code < 600
        assert str(failure.detail) == "It went wrong."
