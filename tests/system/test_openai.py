"""The official openai package against the running service, where that shows in the service itself.

What other clients see is tested in tests/clients.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from benchmarks.running_service import MINILM, SMOLLM2, RunningService, wait_for
from tests.system.conftest import ONE_AT_A_TIME

MESSAGES: Any = [{"role": "user", "content": "Say the alphabet."}]


@pytest.fixture
def client(service: RunningService) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat_and_its_task(service: RunningService, client: OpenAI) -> None:
    asked = client.chat.completions.with_raw_response.create(
        model=SMOLLM2,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
        temperature=0,
        max_completion_tokens=20,
        extra_headers={"X-Priority": "60"},
    )
    completion = asked.parse()
    assert "Paris" in str(completion.choices[0].message.content)
    assert completion.choices[0].finish_reason in ("stop", "length")
    report = service.report(asked.headers["X-Task-Id"])
    assert report["task"]["priority"] == 60
    assert completion.usage is not None
    assert report["tokens"]["total_tokens"] == completion.usage.total_tokens


def test_stream_is_the_same_text(client: OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": SMOLLM2,
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 30,
    }
    whole = client.chat.completions.create(**fields)
    stream = client.chat.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}
    )
    *chunks, usage = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (usage.choices, usage.usage and usage.usage.completion_tokens) == (
        [],
        whole.usage and whole.usage.completion_tokens,
    )


def test_streams_of_several_choices_come_together(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=SMOLLM2, messages=MESSAGES, n=3, seed=1, temperature=1.5, max_tokens=20, stream=True
    )
    texts, reasons = ["", "", ""], {}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert set(reasons) == {0, 1, 2}
    assert all(texts)
    assert len(set(texts)) > 1


def test_completion_goes_on_with_a_raw_prompt(client: OpenAI) -> None:
    completion = client.completions.create(
        model=SMOLLM2, prompt="The capital of France is", temperature=0, max_tokens=5
    )
    assert "Paris" in completion.choices[0].text
    assert completion.usage is not None
    assert completion.usage.prompt_tokens <= 7  # no template around it


def test_embeddings_are_those_of_our_own_route(service: RunningService, client: OpenAI) -> None:
    ours = service.http.post("/embeddings", json={"texts": ["one", "two"]}).json()["embeddings"]
    coded = client.embeddings.create(model=MINILM, input=["one", "two"])  # base64 by default
    plain = client.embeddings.create(model=MINILM, input="one", encoding_format="float")
    assert [pytest.approx(each.embedding, abs=1e-5) for each in coded.data] == ours
    assert plain.data[0].embedding == pytest.approx(ours[0], abs=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_that_is_too_long_is_a_bad_request(client: OpenAI, stream: bool) -> None:
    words: Any = [{"role": "user", "content": 20_000 * "word "}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=SMOLLM2, messages=words, stream=stream)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_tool_is_called(client: OpenAI, stream: bool) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "weather", "description": "Tells the weather.", "parameters": parameters}
    fields: Any = {
        "model": SMOLLM2,
        "messages": [{"role": "user", "content": "How is the weather in Bonn?"}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "logprobs": True,
        "temperature": 0,
        "max_tokens": 60,
    }
    if stream:
        with client.chat.completions.stream(**fields) as events:
            choice: Any = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "weather"
    assert isinstance(json.loads(call.function.arguments), dict)
    assert choice.logprobs.content


def test_client_that_goes_away_cancels_its_task(service: RunningService) -> None:
    words: Any = [{"role": "user", "content": 300 * "word "}]

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model="slow-echo", messages=words, stream=True
            )
            ids.append(stream.response.headers["X-Task-Id"])
            async for _ in stream:
                break
            await stream.close()
            asked = client.chat.completions.create(model=ONE_AT_A_TIME, messages=words)
            waiting = asyncio.ensure_future(asked)
            while not (found := unfinished(ONE_AT_A_TIME)):
                await asyncio.sleep(0.01)
            ids.extend(found)
            waiting.cancel()

    def unfinished(model: str) -> list[str]:
        tasks = service.http.get("/tasks", params={"model": model}).json()["results"]
        return [each["task_id"] for each in tasks if each["finished_at"] is None]

    ids: list[str] = []
    asyncio.run(leave())
    wait_for(lambda: all(service.task(each)["status"] == "cancelled" for each in ids))


def test_client_with_an_idempotency_key_may_come_back(client: OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "slow-echo",
        "messages": [{"role": "user", "content": "one two three four five six seven eight nine"}],
        "extra_headers": {"Idempotency-Key": "comes-back"},
    }
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(**fields)
    completion = client.chat.completions.create(**fields)
    assert "nine" in str(completion.choices[0].message.content)
