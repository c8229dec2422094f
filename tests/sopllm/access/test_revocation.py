"""What is open ends with the key that opened it."""

import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from django.db import connection
from pytest_django import Settings
from websockets.exceptions import ConnectionClosed

from inference.models import GenerationTask
from sopllm.access import identity
from sopllm.access.models import ApiKey
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


def revoke_once_used() -> None:
    wait_until(ApiKey.objects.exclude(last_used_at=None).exists)
    ApiKey.objects.revoke()
    connection.close()


@pytest.mark.parametrize("route", ["/stream", "?wait=60"])
def test_open_response_ends_with_its_key(
    server: LiveServer, new_task: Callable[..., GenerationTask], route: str
) -> None:
    url = f"http://127.0.0.1:{server.port}/api/v1/tasks/{new_task(owner='alice').pk}{route}"
    headers = bearer(key_of("alice"))
    revoking = threading.Thread(target=revoke_once_used)
    revoking.start()
    response = httpx.get(url, headers=headers, timeout=20, trust_env=False)
    revoking.join()
    assert response.status_code == 200
    assert "completed" not in response.text


def test_open_socket_ends_with_its_key(server: LiveServer) -> None:
    with server.client(additional_headers=bearer(key_of("alice"))) as client:
        client.pong()
        ApiKey.objects.revoke()
        with pytest.raises(ConnectionClosed) as closed:
            client.hear()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == SHUT_OUT
