"""LiteLLM's client, which names the API that a server speaks before the model."""

import asyncio
import json
from typing import Any

import litellm
import pytest
from conftest import API_KEY, CHAT_MODEL, ECHO, EMBEDDING_MODEL

USER = {"role": "user", "content": "One two three"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(params=["openai", "litellm_proxy"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(base_url: str) -> dict[str, Any]:
    return {"api_base": base_url, "api_key": API_KEY, "max_retries": 0}


def test_chat(provider: str, server: dict[str, Any]) -> None:
    answer = litellm.completion(model=f"{provider}/{ECHO}", messages=[USER], **server)
    assert answer.choices[0].message.content == "One two three"
    assert answer.usage.total_tokens == 6
    streamed = litellm.completion(
        model=f"{provider}/{ECHO}",
        messages=[USER],
        stream=True,
        stream_options={"include_usage": True},
        **server,
    )
    whole = litellm.stream_chunk_builder(list(streamed))
    assert whole.choices[0].message.content == "One two three"
    assert whole.usage.total_tokens == 6


def test_asynchronous_chat(provider: str, server: dict[str, Any]) -> None:
    async def ask() -> Any:
        return await litellm.acompletion(model=f"{provider}/{ECHO}", messages=[USER], **server)

    assert asyncio.run(ask()).choices[0].message.content == "One two three"


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_is_called(provider: str, server: dict[str, Any], streamed: bool) -> None:
    answer = litellm.completion(
        model=f"{provider}/{CHAT_MODEL}",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=64,
        temperature=0,
        stream=streamed,
        **server,
    )
    if streamed:
        answer = litellm.stream_chunk_builder(list(answer))
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_structured_output(provider: str, server: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    answer = litellm.completion(
        model=f"{provider}/{CHAT_MODEL}",
        messages=[{"role": "user", "content": "Ann is 42 years old."}],
        response_format={"type": "json_schema", "json_schema": {"name": "ann", "schema": schema}},
        max_tokens=64,
        temperature=0,
        **server,
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["age"], int)


def test_embeddings(provider: str, server: dict[str, Any]) -> None:
    vectors = litellm.embedding(
        model=f"{provider}/{EMBEDDING_MODEL}", input=["a cat", "a dog"], **server
    )
    assert [len(each["embedding"]) for each in vectors.data] == [384, 384]


def test_response(provider: str, server: dict[str, Any]) -> None:
    answer = litellm.responses(model=f"{provider}/{ECHO}", input="One two three", **server)
    assert answer.output[0].content[0].text == "One two three"
    events = list(
        litellm.responses(model=f"{provider}/{ECHO}", input="One two", stream=True, **server)
    )
    assert "".join(event.delta for event in events if event.type.endswith("text.delta")) == (
        "One two"
    )


@pytest.mark.parametrize(
    ("provider", "path"), [("litellm_proxy", ""), ("jina_ai", "/v1/rerank"), ("hosted_vllm", "/v1")]
)
def test_documents_are_ranked(service_url: str, provider: str, path: str) -> None:
    ranked = litellm.rerank(
        model=f"{provider}/{EMBEDDING_MODEL}",
        query="a cat",
        documents=["a ship", "a kitten"],
        top_n=1,
        api_base=f"{service_url}{path}",
        api_key=API_KEY,
    )
    assert [each["index"] for each in ranked.results] == [1]


def test_messages_of_anthropic(service_url: str) -> None:
    answer = litellm.completion(
        model=f"anthropic/{ECHO}",
        messages=[USER],
        max_tokens=20,
        api_base=service_url,
        api_key=API_KEY,
    )
    assert answer.choices[0].message.content == "One two three"


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"temperature": 9}, litellm.BadRequestError),
        ({"api_key": f"sopllm_00000000_{'x' * 43}"}, litellm.AuthenticationError),
        ({"model": "none-such"}, litellm.NotFoundError),
    ],
)
def test_errors_are_those_of_litellm(
    provider: str, server: dict[str, Any], changed: dict[str, Any], error: type[Exception]
) -> None:
    asked = {"model": ECHO, **server, **changed}
    asked["model"] = f"{provider}/{asked['model']}"
    with pytest.raises(error):
        litellm.completion(messages=[USER], num_retries=0, **asked)
