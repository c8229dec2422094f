"""The official client of Anthropic for Python."""

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic
from conftest import API_KEY, CHAT_MODEL, ECHO, SLOW_ECHO

# The newest models of Anthropic take no temperature, and so its client has none.
GREEDY: Any = {"extra_body": {"temperature": 0}}
USER: Any = {"role": "user", "content": "One two three"}
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=service_url, api_key=API_KEY, max_retries=0) as client:
        yield client


def test_message(client: Anthropic) -> None:
    answer = client.messages.create(model=ECHO, max_tokens=20, messages=[USER])
    assert [block.text for block in answer.content] == ["One two three"]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 3)
    assert answer._request_id.startswith("req_")


def test_stream_gives_the_same_message(client: Anthropic) -> None:
    fields: Any = {
        "model": CHAT_MODEL,
        "max_tokens": 12,
        "system": "You are brief.",
        "messages": [USER],
        **GREEDY,
    }
    with client.messages.stream(**fields) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert streamed.content[0].text == text
    assert streamed.stop_reason in ("end_turn", "max_tokens")
    assert 0 < streamed.usage.output_tokens <= 12
    whole = client.messages.create(**fields)
    cached = streamed.usage.cache_read_input_tokens, whole.usage.cache_read_input_tokens
    assert streamed.usage.input_tokens + cached[0] == whole.usage.input_tokens + cached[1]


def test_events_of_the_beta_client(client: Anthropic) -> None:
    stream = client.beta.messages.create(model=ECHO, max_tokens=20, messages=[USER], stream=True)
    kinds = [event.type for event in stream]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_stop_sequence_is_named(client: Anthropic) -> None:
    answer = client.messages.create(
        model=ECHO, max_tokens=20, messages=[USER], stop_sequences=["nothing", " three"]
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " three")
    assert answer.content[0].text == "One two"


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_is_used_and_its_result_read(client: Anthropic, streamed: bool) -> None:
    question: Any = {"role": "user", "content": "How is the weather in Bonn?"}
    fields: Any = GREEDY | {"model": CHAT_MODEL, "max_tokens": 60, "tools": [TOOL]}
    asked = fields | {
        "messages": [question],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    }
    if streamed:
        with client.messages.stream(**asked) as stream:
            answer = stream.get_final_message()
    else:
        answer = client.messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    [use] = [block for block in answer.content if block.type == "tool_use"]
    assert use.name == "weather"
    assert isinstance(use.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "12 degrees, rain"}
    turns = [question, answer.to_param(), {"role": "user", "content": [result]}]
    assert client.messages.create(**fields, messages=turns).usage.output_tokens > 0


@pytest.mark.parametrize("fields", [{}, {"system": "You are brief.", "tools": [TOOL]}])
def test_tokens_are_counted_as_a_message_takes_them(
    client: Anthropic, fields: dict[str, Any]
) -> None:
    asked: Any = fields | {"model": CHAT_MODEL, "messages": [USER]}
    usage = client.messages.create(**asked, max_tokens=1).usage
    counted = client.messages.count_tokens(**asked).input_tokens
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_models(client: Anthropic) -> None:
    names = [model.id for model in client.models.list(limit=1)]
    assert names == sorted(names)
    assert {ECHO, CHAT_MODEL} <= set(names)
    model = client.models.retrieve(CHAT_MODEL)
    assert (model.display_name, model.lifecycle) == (CHAT_MODEL, "active")
    assert model.max_input_tokens > 0
    with pytest.raises(anthropic.NotFoundError, match="none-such") as caught:
        client.models.retrieve("none-such")
    assert caught.value.type == "not_found_error"


def test_raw_response_names_its_task(client: Anthropic, service_url: str) -> None:
    raw = client.messages.with_raw_response.create(
        model=ECHO, max_tokens=20, messages=[USER], extra_headers={"X-Priority": "30"}
    )
    task = httpx.get(f"{service_url}/api/v1/tasks/{raw.headers['x-task-id']}").json()
    assert (task["result"]["text"], task["priority"]) == ("One two three", 30)


def test_client_that_goes_away_cancels(client: Anthropic, service_url: str) -> None:
    words = " ".join(f"word{number}" for number in range(300))
    raw = client.messages.with_raw_response.create(
        model=SLOW_ECHO,
        max_tokens=300,
        messages=[{"role": "user", "content": words}],
        stream=True,
    )
    with raw.parse() as stream:
        next(iter(stream))
    task_id = raw.headers["x-task-id"]
    task = httpx.get(f"{service_url}/api/v1/tasks/{task_id}?wait=30", timeout=40).json()
    assert task["status"] == "cancelled"


def test_unknown_model_is_not_found(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="none-such", max_tokens=9, messages=[USER])
    assert caught.value.body["error"]["type"] == "not_found_error"
    assert "none-such" in caught.value.message
    assert caught.value.request_id.startswith("req_")


def test_what_would_change_the_answer_is_refused(client: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="container"):
        client.messages.create(
            model=ECHO, max_tokens=9, messages=[USER], extra_body={"container": "c"}
        )


def test_wrong_key_is_an_authentication_error(service_url: str) -> None:
    key = f"sopllm_00000000_{'x' * 43}"
    with (
        Anthropic(base_url=service_url, api_key=key, max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model=ECHO, max_tokens=9, messages=[USER])
