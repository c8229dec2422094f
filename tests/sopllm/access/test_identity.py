"""Who asks, behind the ASGI handler: keys, tickets, signed-in users, the local machine."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from monitoring.api.principal import Principal, Scope
from monitoring.redis.client import client as redis_client
from sopllm.access.identity import owner_of_user
from sopllm.access.models import ApiKey, ApiKeyQuerySet
from sopllm.handler import PooledHandler
from tests.conftest import Valkey
from tests.sopllm.access.clients import bearer, close_to_strangers, key_of, request
from tests.sopllm.test_handler import assert_error, talk

pytestmark = pytest.mark.django_db(transaction=True)

ME = "/api/v1/keys/me"


def test_key_lets_in_as_its_owner(settings: Settings) -> None:
    close_to_strangers(settings)
    key = key_of("alice", "tasks", "monitor", max_priority=5)
    for headers in (bearer(key), {"X-API-Key": key}):
        me = request("GET", ME, headers=headers).json()
        assert (me["owner"], me["scopes"]) == ("alice", ["monitor", "tasks"])
        assert me["limits"]["max_priority"] == 5


def test_key_counts_on_the_local_machine_too() -> None:
    assert request("GET", ME).json()["owner"] == "local"
    assert request("GET", ME, headers=bearer(key_of("alice"))).json()["owner"] == "alice"
    wrong = f"sopllm_{8 * '0'}_{43 * 'a'}"
    assert_error(request("GET", ME, headers=bearer(wrong)), 401, "authentication_required")
    # What SDKs are given where no key is needed.
    assert request("GET", ME, headers=bearer("none")).json()["owner"] == "local"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        *(bearer(key) for key in ("", "sopllm_x", f"sopllm_{8 * '0'}_{43 * 'a'}", "é")),
        {"X-API-Key": "nonsense"},
        {"Authorization": "Basic YTpi"},
        {"Cookie": "sessionid=" + 32 * "a"},
        {"Cookie": "sessionid=;;\x01"},
    ],
)
def test_nobody_else_comes_in(settings: Settings, headers: dict[str, str]) -> None:
    close_to_strangers(settings)
    raw = {name: value.encode("latin1") for name, value in headers.items()}
    for path in (ME, "/api/v1/tasks", "/metrics", "/api/v1/", "/api/v1/nothing", "/nothing"):
        response = request("POST", path, headers=raw, json={})
        assert_error(response, 401, "authentication_required")
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz/", "/docs", "/redoc", "/openapi.json", "/admin/login/"]
)
def test_pages_without_data_are_open(settings: Settings, path: str, valkey: Valkey) -> None:
    close_to_strangers(settings)
    assert request("GET", path).status_code == 200


def test_revoked_and_expired_keys_let_in_nobody(settings: Settings) -> None:
    close_to_strangers(settings)
    revoked, expired = key_of("alice"), key_of("alice")
    ApiKey.objects.filter(prefix=revoked[7:15]).revoke()
    over = timezone.now() - timedelta(seconds=1)
    ApiKey.objects.filter(prefix=expired[7:15]).update(expires_at=over)
    for key in (revoked, expired):
        assert request("GET", ME, headers=bearer(key)).status_code == 401


@pytest.mark.parametrize("is_known", [True, False])
def test_key_seen_lately_is_not_looked_up(is_known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of("alice") if is_known else f"sopllm_{8 * '0'}_{43 * 'a'}"
    look_up, looked_up = ApiKeyQuerySet.find, []

    def find(keys: ApiKeyQuerySet, digest: str) -> Principal | None:
        looked_up.append(digest)
        return look_up(keys, digest)

    async def conversation(client: httpx.AsyncClient) -> list[int]:
        return [(await client.get("/api/v1/no", headers=bearer(key))).status_code for _ in "abc"]

    monkeypatch.setattr(ApiKeyQuerySet, "find", find)
    assert talk(conversation) == 3 * [404 if is_known else 401]
    assert len(looked_up) == 1


def test_body_of_a_stranger_is_not_read(settings: Settings) -> None:
    close_to_strangers(settings)

    async def receive() -> Any:
        raise AssertionError("it was read")

    assert asyncio.run(_sent(receive, "/api/v1/tasks"))[0]["status"] == 401


async def _sent(receive: Any, path: str) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "client": ("127.0.0.1", 1),
        "method": "POST",
        "path": path,
        "headers": [],
        "query_string": b"",
    }
    handler = PooledHandler()
    await handler(scope, receive, send)
    await handler.stop()
    return sent


@pytest.mark.parametrize(
    "header", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP"]
)
def test_through_a_proxy_nobody_is_local(header: str) -> None:
    assert_error(request("GET", ME, headers={header: "1"}), 401, "authentication_required")


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"])
def test_other_machines_are_not_local(peer: str) -> None:
    async def run() -> httpx.Response:
        handler = PooledHandler()
        transport = httpx.ASGITransport(handler, client=(peer, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            response = await client.get(ME)
        await handler.stop()
        return response

    assert_error(asyncio.run(run()), 401, "authentication_required")


# Tickets


def test_ticket_lets_in_once_as_who_asked_for_it(settings: Settings, valkey: Valkey) -> None:
    close_to_strangers(settings)
    headers = bearer(key_of("alice"))
    made = request("POST", "/api/v1/monitor/ticket", headers=headers)
    assert made.status_code == 201
    path = f"{ME}?ticket={made.json()['ticket']}"
    assert request("GET", path).json()["owner"] == "alice"
    assert_error(request("GET", path), 401, "authentication_required")
    assert not redis_client().keys("ticket:*")


def test_ticket_of_a_revoked_key_lets_in_nobody(settings: Settings, valkey: Valkey) -> None:
    close_to_strangers(settings)
    made = request("POST", "/api/v1/monitor/ticket", headers=bearer(key_of("alice")))
    ApiKey.objects.revoke()
    assert request("GET", f"{ME}?ticket={made.json()['ticket']}").status_code == 401


# Signed-in users


def session_cookie(**fields: Any) -> dict[str, str]:
    """The cookie of a new user who has signed in."""
    user = get_user_model().objects.create_user(**fields)
    client = Client()
    client.force_login(user)
    return {"Cookie": f"sessionid={client.cookies['sessionid'].value}"}


def test_signed_in_user_is_an_owner(settings: Settings) -> None:
    close_to_strangers(settings)
    me = request("GET", ME, headers=session_cookie(username="bob")).json()
    assert (me["owner"], me["scopes"], me["is_staff"]) == ("bob", ["tasks"], False)
    me = request("GET", ME, headers=session_cookie(username="eve", is_staff=True)).json()
    assert (me["scopes"], me["is_staff"]) == (sorted(Scope), True)


@pytest.mark.parametrize("name", ["local", "Bob", "user-7", "bob@example.org", "-bob", 64 * "b"])
def test_user_whose_name_can_be_no_owner_is_one_by_number(name: str) -> None:
    user = get_user_model().objects.create_user(username=name)
    assert owner_of_user(user) == f"user-{user.pk}"


def test_signed_in_user_needs_a_csrf_token_to_change_anything(
    settings: Settings, valkey: Valkey
) -> None:
    close_to_strangers(settings)
    cookie = session_cookie(username="bob")
    path = "/api/v1/conversations"
    assert_error(request("POST", path, headers=cookie, json={}), 403, "permission_denied")
    token = 32 * "a"
    with_token = {
        "Cookie": f"{cookie['Cookie']}; csrftoken={token}",
        "X-CSRFToken": token,
        "Origin": "http://127.0.0.1",
    }
    assert request("POST", path, headers=with_token, json={}).status_code == 201


def test_user_who_is_shut_out_does_not_come_in(settings: Settings) -> None:
    close_to_strangers(settings)
    cookie = session_cookie(username="bob")
    get_user_model().objects.update(is_active=False)
    assert request("GET", ME, headers=cookie).status_code == 401


# Scopes


def test_each_scope_opens_its_own_routes(settings: Settings, valkey: Valkey) -> None:
    close_to_strangers(settings)
    allowed = {
        "tasks": {"/api/v1/tasks", "/api/v1/conversations", "/api/v1/models", "/api/v1/"},
        "monitor": {"/metrics", "/api/v1/monitor/gpu", "/api/v1/models", "/api/v1/"},
        "admin": {"/api/v1/keys", "/api/v1/models", "/api/v1/"},
    }
    for scope, paths in allowed.items():
        headers = bearer(key_of("alice", scope))
        for path in set().union(*allowed.values()):
            response = request("GET", path, headers=headers)
            assert response.status_code == (200 if path in paths else 403), (scope, path)


def test_refusal_names_the_scope(settings: Settings) -> None:
    close_to_strangers(settings)
    response = request("GET", "/api/v1/keys", headers=bearer(key_of("alice")))
    assert_error(response, 403, "permission_denied")
    assert "admin" in response.json()["message"]
