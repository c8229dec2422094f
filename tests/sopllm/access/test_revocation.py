"""What is open ends when who opened it may no longer see what it may have shown."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.conf import settings as configured
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.utils import timezone
from pytest_django import Settings
from websockets.exceptions import ConnectionClosed

from inference.models import Batch, GenerationTask
from monitoring.api.principal import LOCAL, Principal, Scope
from sopllm.access import identity
from sopllm.access.identity import Identity
from sopllm.access.models import ApiKey
from sopllm.access.tasks import cancel_batches
from sopllm.access.websockets import SHUT_OUT
from tests.conftest import Valkey, wait_until
from tests.live_server import LiveServer
from tests.sopllm.access.clients import bearer, close_to_strangers, key_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server(
    valkey: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LiveServer]:
    close_to_strangers(settings)
    monkeypatch.setattr(identity, "_KNOWN_SECONDS", 0.05)
    monkeypatch.setattr(identity, "_LOOK_AGAIN_SECONDS", 0.05)
    live_server = LiveServer()
    live_server.start()
    yield live_server
    live_server.stop()


def the_key(**fields: Any) -> Callable[[], object]:
    """Changes the only key."""
    return lambda: ApiKey.objects.update(**fields)


def the_user(**fields: Any) -> Callable[[], object]:
    """Changes the only user."""
    return lambda: User.objects.update(**fields)


LOSSES_OF_KEYS = {
    "revoked": ApiKey.objects.revoke,
    "expired": lambda: ApiKey.objects.update(expires_at=timezone.now() - timedelta(seconds=1)),
    "deleted": lambda: ApiKey.objects.all().delete(),
    "another scope": the_key(scopes=[Scope.ADMIN]),
    "no monitor": the_key(scopes=[Scope.TASKS]),
    "another owner": the_key(owner="bob"),
}
LOSSES_OF_USERS = {
    "deactivated": the_user(is_active=False),
    "no staff": the_user(is_staff=False),
    "another password": the_user(password="!"),
    "signed out": lambda: Session.objects.all().delete(),
}


def headers_of(loss: str) -> dict[str, str]:
    """Of somebody new, who can have that loss: a key or a signed-in member of the staff."""
    if loss in LOSSES_OF_KEYS:
        return bearer(key_of("alice", Scope.TASKS, Scope.MONITOR))
    browser = Client()
    browser.force_login(
        User.objects.create_user("alice", is_staff=True),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    name = configured.SESSION_COOKIE_NAME
    return {"Cookie": f"{name}={browser.cookies[name].value}"}


LOSSES = LOSSES_OF_KEYS | LOSSES_OF_USERS


@pytest.mark.parametrize("route", ["/stream", "?wait=60"])
@pytest.mark.parametrize("loss", LOSSES)
def test_open_response_ends_with_what_opened_it(
    server: LiveServer,
    new_task: Callable[..., GenerationTask],
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
    route: str,
) -> None:
    url = f"http://127.0.0.1:{server.port}/api/v1/tasks/{new_task(owner='alice').pk}{route}"
    headers = headers_of(loss)
    is_open = threading.Event()
    wait_until_revoked = Identity.wait_until_revoked

    async def open_and_wait(self: Identity, principal: Principal | None) -> None:
        is_open.set()
        await wait_until_revoked(self, principal)

    monkeypatch.setattr(Identity, "wait_until_revoked", open_and_wait)

    def lose_once_open() -> None:
        assert is_open.wait(20)
        LOSSES[loss]()
        connection.close()

    losing = threading.Thread(target=lose_once_open)
    losing.start()
    response = httpx.get(url, headers=headers, timeout=20, trust_env=False)
    losing.join()
    assert response.status_code == 200
    assert "completed" not in response.text


@pytest.mark.parametrize("loss", LOSSES)
def test_open_socket_ends_with_what_opened_it(server: LiveServer, loss: str) -> None:
    with server.client(additional_headers=headers_of(loss)) as client:
        client.pong()
        LOSSES[loss]()
        with pytest.raises(ConnectionClosed) as closed:
            client.hear()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == SHUT_OUT


def test_socket_stays_open_for_who_may_do_more_than_before(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Principal] = []
    has_all_of = Principal.has_all_of

    def look(found: Principal, earlier: Principal) -> bool:
        looks.append(found)
        return has_all_of(found, earlier)

    monkeypatch.setattr(Principal, "has_all_of", look)
    with server.client(additional_headers=bearer(key_of("alice"))) as client:
        ApiKey.objects.update(scopes=list(Scope), requests_per_second=1000)
        wait_until(lambda: looks and Scope.MONITOR in looks[-1].scopes)
        client.pong()


@pytest.mark.parametrize(
    ("credential", "lose", "is_cancelled"),
    [
        ("key", ApiKey.objects.revoke, True),
        ("key", ApiKey.objects.all().delete, True),
        ("key", the_key(expires_at=timezone.now() - timedelta(days=1)), False),
        ("user", the_user(is_active=False), True),
        ("user", User.objects.all().delete, True),
        ("user", Session.objects.all().delete, False),
        ("", ApiKey.objects.revoke, False),
    ],
)
def test_batches_end_with_a_revoked_key_or_a_deactivated_user(
    credential: str, lose: Callable[[], object], is_cancelled: bool
) -> None:
    key, _ = ApiKey.objects.make("alice", ["tasks"])
    user = User.objects.create_user("alice")
    session_key = "s" * 32
    owners = {
        "key": key.principal(),
        "user": Principal(user.username, "alice", frozenset(), session_key=session_key),
        "": LOCAL,
    }
    now = timezone.now()
    principal = owners[credential]
    batch = Batch.objects.create(
        owner=principal.owner, credential=principal.credential, created_at=now, deadline_at=now
    )
    cancel_batches()
    batch.refresh_from_db()
    assert batch.status == Batch.Status.VALIDATING
    lose()
    cancel_batches()
    batch.refresh_from_db()
    assert (batch.status == Batch.Status.CANCELLING) is is_cancelled
