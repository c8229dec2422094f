"""Names of hosts that lead where no model may be asked, when it is registered or later."""

import asyncio
import socket
import threading
from typing import Any

import pytest
from pytest_django import Settings
from rest_framework.test import APIClient

from inference.embeddings.cloud import embed
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.providers import hosts
from tests.cloud_server import KEY, CloudServer
from tests.inference.api.test_models import MODELS
from tests.inference.api.test_models import register as register_by_api
from tests.inference.api.test_tasks import assert_error
from tests.inference.providers.conftest import Register
from tests.inference.providers.test_cloud_provider import answer, failure

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]

NAME = "model.example"
METADATA = ("169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of names; those of others are asked for as ever."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        found = known.get(host.decode() if isinstance(host, bytes) else host)
        if found is None:
            return real(host, port, *args, **kwargs)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(hosts, "_KEPT_SECONDS", 0.0)
    monkeypatch.setattr(hosts, "_look_ups", {})
    return known


@pytest.mark.parametrize("address", METADATA)
def test_name_of_a_metadata_service_is_refused(
    api: APIClient, names: dict[str, list[str]], settings: Settings, address: str
) -> None:
    names[NAME] = ["93.184.216.34", address]
    config = {"model_name": "x", "base_url": f"https://{NAME}/v1", "api_key": KEY}
    told = register_by_api(api, "x", "openai_compatible", **config)
    assert_error(told, 400, "validation_error", "config")
    assert "PROVIDER_ALLOWED_HOSTS" in told.json()["message"]
    assert address not in told.content.decode()
    settings.PROVIDER_ALLOWED_HOSTS = [NAME]
    assert register_by_api(api, "x", "openai_compatible", **config).status_code == 201


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "0.0.0.0", "::1"])  # noqa: S104
def test_name_of_this_machine_is_refused_but_in_local_mode(
    names: dict[str, list[str]], settings: Settings, address: str
) -> None:
    names[NAME] = [address]
    config = {"base_url": f"http://{NAME}"}
    assert hosts.refusal_by_name(config, 5) is None
    settings.APP_ENV = "production"
    assert "is this machine" in (hosts.refusal_by_name(config, 5) or "")


def test_private_networks_and_unknown_names_may_be_registered(
    api: APIClient, names: dict[str, list[str]]
) -> None:
    names[NAME] = ["10.0.0.7", "fd00::7"]
    for index, host in enumerate((NAME, "nowhere.invalid")):
        config = {"model_name": "x", "base_url": f"https://{host}/v1", "api_key": KEY}
        assert register_by_api(api, f"x{index}", "openai_compatible", **config).status_code == 201
    assert api.get(MODELS).json()["total"] == 2


def test_name_that_leads_elsewhere_by_now_is_not_asked(
    register: Register, server: CloudServer, names: dict[str, list[str]]
) -> None:
    model = register(base_url=server.openai_url.replace("127.0.0.1", "localhost"))
    assert answer(model)[0] == "one two three four five six"
    names["localhost"] = ["169.254.169.254"]
    told = failure(model)
    assert (told.code, told.retryable) == (ErrorCode.PROVIDER_ERROR, False)
    assert "is not asked" in told.message
    model.provider, model.config["model_name"] = "embedding", "openai/e"
    with pytest.raises(InferenceError, match="is not asked"):
        embed(model, ["a text"], None)
    assert len(server.calls) == 1


def test_silent_name_server_costs_one_thread_and_limited_time(
    api: APIClient, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    over, asked = threading.Event(), []

    def silent(host: str, *args: object, **kwargs: object) -> list[Any]:
        asked.append(host)
        over.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr(hosts, "_LOOK_UP_SECONDS", 0.05)
    config = {"model_name": "x", "base_url": f"https://{NAME}/v1", "api_key": KEY}
    assert register_by_api(api, "x", "openai_compatible", **config).status_code == 201
    model = RegisteredModel.objects.get()

    async def check_many() -> list[Any]:
        checks = [hosts.check(model) for _ in range(100)]
        return await asyncio.gather(*checks, return_exceptions=True)

    found = asyncio.run(check_many())
    assert {(each.code, each.retryable) for each in found} == {
        (ErrorCode.PROVIDER_UNAVAILABLE, True)
    }
    assert asked == [NAME]
    over.set()
