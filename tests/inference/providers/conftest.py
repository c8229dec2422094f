"""A stand-in for the clouds, and models that it answers for."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inference.models import RegisteredModel
from inference.providers.cloud import retries
from tests.cloud_server import KEY, CloudServer

Register = Callable[..., RegisteredModel]

Kind = RegisteredModel.Provider
NAMES = {
    Kind.OPENAI: "gpt-4o-mini",
    Kind.ANTHROPIC: "claude-3-5-haiku-latest",
    Kind.OPENAI_COMPATIBLE: "llama-3",
    Kind.LITELLM: "deepseek/deepseek-chat",
}


@pytest.fixture(scope="module")
def running_server() -> Iterator[CloudServer]:
    with CloudServer() as server:
        yield server


@pytest.fixture
def server(running_server: CloudServer) -> CloudServer:
    running_server.faults.clear()
    running_server.calls.clear()
    running_server.retry_after = None
    running_server.is_strict = True
    running_server.key = KEY
    return running_server


@pytest.fixture
def register(server: CloudServer, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Makes models of the stand-in; retries come almost at once."""
    monkeypatch.setenv("STAND_IN_API_KEY", KEY)
    monkeypatch.setattr(retries, "_FIRST_PAUSE_SECONDS", 0.01)

    def make(kind: str = Kind.OPENAI, **config: Any) -> RegisteredModel:
        window = config.pop("context_window", None)
        defaults = {
            "model_name": NAMES[Kind(kind)],
            "base_url": server.url if kind == Kind.ANTHROPIC else server.openai_url,
            "api_key_env_var": "STAND_IN_API_KEY",
            "timeout": 20,
            "max_retries": 2,
        }
        return RegisteredModel.objects.create(
            name="cloud", provider=kind, config=defaults | config, context_window=window
        )

    return make
