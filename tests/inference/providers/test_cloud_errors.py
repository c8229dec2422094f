"""What is raised when a provider fails, and what becomes of it."""

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.providers.base import GenerationRequest, Progress
from inference.providers.cloud import errors
from inference.providers.cloud.library import library
from inference.providers.registry import provider_for
from tests.cloud_server import KEY, CloudServer, Fault, Reply
from tests.inference.execution.cloud_sessions import deltas

pytestmark = pytest.mark.usefixtures("valkey")

Kind = RegisteredModel.Provider

CODES = {
    Fault.UNAUTHORIZED: (ErrorCode.AUTHENTICATION_FAILED, False),
    Fault.FORBIDDEN: (ErrorCode.AUTHENTICATION_FAILED, False),
    Fault.NO_SUCH_MODEL: (ErrorCode.PROVIDER_ERROR, False),
    Fault.RATE_LIMITED: (ErrorCode.RATE_LIMITED, True),
    Fault.NO_QUOTA: (ErrorCode.RATE_LIMITED, False),
    Fault.CONTEXT_TOO_LONG: (ErrorCode.CONTEXT_LENGTH_EXCEEDED, False),
    Fault.CONTENT_POLICY: (ErrorCode.CONTENT_FILTERED, False),
    Fault.INVALID: (ErrorCode.INVALID_REQUEST, False),
    Fault.SERVER_ERROR: (ErrorCode.PROVIDER_UNAVAILABLE, True),
    Fault.BAD_GATEWAY: (ErrorCode.PROVIDER_UNAVAILABLE, True),
    Fault.UNAVAILABLE: (ErrorCode.PROVIDER_UNAVAILABLE, True),
    Fault.OVERLOADED: (ErrorCode.PROVIDER_UNAVAILABLE, True),
    Fault.DISCONNECT: (ErrorCode.PROVIDER_UNAVAILABLE, True),
    Fault.CUT: (ErrorCode.PROVIDER_UNAVAILABLE, True),
    Fault.ENDS_EARLY: (ErrorCode.PROVIDER_UNAVAILABLE, True),
    Fault.ERROR_MIDWAY: (ErrorCode.PROVIDER_UNAVAILABLE, True),
    Fault.FILTERED: (ErrorCode.CONTENT_FILTERED, False),
}


@pytest.fixture(scope="module")
def server() -> Iterator[CloudServer]:
    with CloudServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch, server: CloudServer) -> None:
    monkeypatch.setenv("STAND_IN_API_KEY", KEY)
    server.faults.clear()
    server.retry_after = None


def model(kind: str, base_url: str, **config: object) -> RegisteredModel:
    names = {Kind.ANTHROPIC: "claude-3-5-haiku-latest", Kind.LITELLM: "deepseek/deepseek-chat"}
    defaults = {
        "model_name": names.get(Kind(kind), "gpt-4o-mini"),
        "base_url": base_url,
        "api_key_env_var": "STAND_IN_API_KEY",
        "max_retries": 0,
    }
    return RegisteredModel(pk=1, name="cloud", provider=kind, config=defaults | config)


def failure(asked: RegisteredModel) -> InferenceError:
    params = {"max_tokens": 100, "stop_sequences": []}
    messages = [{"role": "user", "content": "one two three four five six"}]
    request = GenerationRequest("request", messages, params)  # type: ignore[arg-type]
    with pytest.raises(InferenceError) as caught:
        list(deltas(provider_for(asked).generate(request, Progress())))
    return caught.value


@pytest.mark.parametrize("fault", CODES)
@pytest.mark.parametrize(
    "kind", [Kind.OPENAI, Kind.ANTHROPIC, Kind.OPENAI_COMPATIBLE, Kind.LITELLM]
)
def test_each_failure_has_its_code(server: CloudServer, kind: str, fault: Fault) -> None:
    server.faults.append(fault)
    error = failure(model(kind, server.url if kind == Kind.ANTHROPIC else server.openai_url))
    assert (error.code, error.retryable) == CODES[fault]
    assert "cloud" in error.message
    assert not {"litellm.", "Traceback", "b'", "<", KEY} & {
        part for part in ("litellm.", "Traceback", "b'", "<", KEY) if part in error.message
    }
    assert len(error.message) < 600


@pytest.mark.parametrize(
    "kind", [Kind.OPENAI, Kind.ANTHROPIC, Kind.OPENAI_COMPATIBLE, Kind.LITELLM]
)
def test_nobody_listening_is_a_failure_that_may_pass(kind: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = failure(model(kind, f"http://127.0.0.1:{taken.getsockname()[1]}"))
    assert (error.code, error.retryable) == (ErrorCode.PROVIDER_UNAVAILABLE, True)


def test_unknown_provider_is_told_from_a_bad_request(server: CloudServer) -> None:
    error = failure(model(Kind.LITELLM, server.openai_url, model_name="nobody/nothing"))
    assert error.code == ErrorCode.PROVIDER_ERROR
    assert "nobody/nothing" in error.message


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (400, "This model's maximum context length is 4096 tokens. However, you requested 5000."),
        (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
        (400, {"code": 400, "message": "too many tokens", "type": "exceed_context_size_error"}),
    ],
)
def test_servers_say_in_their_own_words_that_messages_are_too_long(
    server: CloudServer, status: int, told: Any
) -> None:
    error = told if isinstance(told, dict) else {"message": told}
    server.faults.append(Reply.of_json({"error": error}, status))
    asked = model(Kind.OPENAI_COMPATIBLE, server.openai_url)
    assert failure(asked).code == ErrorCode.CONTEXT_LENGTH_EXCEEDED


@pytest.mark.parametrize(
    "kind", [Kind.OPENAI, Kind.ANTHROPIC, Kind.OPENAI_COMPATIBLE, Kind.LITELLM]
)
def test_provider_says_when_to_come_back(server: CloudServer, kind: str) -> None:
    server.retry_after = "7"
    server.faults.append(Fault.RATE_LIMITED)
    asked = model(kind, server.url if kind == Kind.ANTHROPIC else server.openai_url)
    assert failure(asked).retry_after == 7


def test_time_to_come_back_may_be_a_date(server: CloudServer) -> None:
    in_a_minute = datetime.now(UTC) + timedelta(minutes=1)
    server.retry_after = format_datetime(in_a_minute, usegmt=True)
    server.faults.append(Fault.RATE_LIMITED)
    seconds = failure(model(Kind.OPENAI, server.openai_url)).retry_after
    assert seconds is not None
    assert 30 < seconds <= 60


def test_key_of_the_registration_is_to_be_registered_anew(server: CloudServer) -> None:
    asked = model(Kind.OPENAI, server.openai_url)
    assert "check STAND_IN_API_KEY in the worker's environment" in _refusal(asked)
    asked.encrypted_api_key = "sealed"
    assert "register the model anew with a valid api_key" in _refusal(asked)
    asked.encrypted_api_key = ""
    del asked.config["api_key_env_var"]
    assert "with api_key or api_key_env_var" in _refusal(asked)


def _refusal(asked: RegisteredModel) -> str:
    class AuthenticationError(Exception):
        status_code = 401

    return errors.failure_of(AuthenticationError("no"), asked, "key").message


def test_long_words_are_shortened() -> None:
    error = errors.failure_of(ValueError("word " * 10_000), model(Kind.OPENAI, ""), None)
    assert error.message.endswith("…")
    assert len(error.message) < 500


@pytest.mark.parametrize(
    "text", [" " * 400_000, "<" * 400_000, "Error" * 80_000, '{"message": "' + "<" * 400_000]
)
def test_long_text_of_a_provider_is_read_in_no_time(text: str) -> None:
    library()
    started = time.process_time()
    errors.failure_of(ValueError(text), model(Kind.OPENAI, ""), None)
    assert time.process_time() - started < 5  # half a minute when all of it was searched


def test_key_is_hidden_wherever_the_provider_puts_it() -> None:
    key = "strange/key+with=signs"
    text = f'litellm.BadRequestError: OpenAIException - {{"message": "bad {key} given"}}'
    error = errors.failure_of(ValueError(text), model(Kind.OPENAI, ""), key)
    assert key not in error.message
    assert "bad *** given" in error.message
