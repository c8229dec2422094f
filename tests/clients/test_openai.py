"""The official client of OpenAI for Python."""

import base64
import json
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from conftest import API_KEY, CHAT_MODEL, ECHO, EMBEDDING_MODEL, SLOW_ECHO
from openai import OpenAI
from pydantic import BaseModel

USER = {"role": "user", "content": "One two three"}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key=API_KEY, max_retries=0) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=ECHO, messages=[USER])
    assert answer.choices[0].message.content == "One two three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chat_ends_with_its_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=[{"role": "system", "content": "You are brief."}, USER],
        max_completion_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    assert last.choices == []
    assert 0 < last.usage.completion_tokens <= 12


def test_several_choices(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL, messages=[USER], n=3, max_tokens=8, seed=7, temperature=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_parsed_answer_is_an_object_of_the_class(client: OpenAI) -> None:
    completion = client.chat.completions.parse(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "Ann is 42 years old."}],
        response_format=Person,
        max_tokens=64,
        temperature=0,
    )
    assert isinstance(completion.choices[0].message.parsed, Person)


def test_raw_response_names_its_task(client: OpenAI, service_url: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=ECHO, messages=[USER])
    task_id = raw.headers["x-task-id"]
    task = httpx.get(f"{service_url}/api/v1/tasks/{task_id}").json()
    assert task["result"]["text"] == raw.parse().choices[0].message.content


def test_client_that_goes_away_cancels(client: OpenAI, service_url: str) -> None:
    words = " ".join(f"word{number}" for number in range(300))
    raw = client.chat.completions.with_raw_response.create(
        model=SLOW_ECHO, messages=[{"role": "user", "content": words}], stream=True
    )
    with raw.parse() as stream:
        next(iter(stream))
    task_id = raw.headers["x-task-id"]
    task = httpx.get(f"{service_url}/api/v1/tasks/{task_id}?wait=30", timeout=40).json()
    assert task["status"] == "cancelled"


def test_completion_of_a_raw_prompt(client: OpenAI) -> None:
    answer = client.completions.create(
        model=CHAT_MODEL, prompt="1, 2, 3, 4, 5,", max_tokens=6, temperature=0
    )
    assert answer.choices[0].text


def test_embeddings_are_the_same_as_floats_and_as_base64(client: OpenAI) -> None:
    texts = ["a cat", "a dog"]
    as_floats = client.embeddings.create(
        model=EMBEDDING_MODEL, input=texts, encoding_format="float"
    )
    as_base64 = client.embeddings.with_raw_response.create(
        model=EMBEDDING_MODEL, input=texts, encoding_format="base64"
    )
    for index, item in enumerate(as_base64.http_response.json()["data"]):
        raw = base64.b64decode(item["embedding"])
        vector = struct.unpack(f"<{len(raw) // 4}f", raw)
        assert as_floats.data[index].embedding == pytest.approx(vector, abs=1e-6)


def test_models(client: OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {ECHO, CHAT_MODEL, EMBEDDING_MODEL} <= names
    assert client.models.retrieve(CHAT_MODEL).id == CHAT_MODEL


def test_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="none-such", messages=[USER])
    assert caught.value.code == "model_not_found"
    assert "none-such" in caught.value.message


def test_bad_request_names_the_parameter(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=ECHO, messages=[USER], temperature=9)
    assert caught.value.param == "temperature"


def test_unknown_parameter_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=ECHO, messages=[USER], extra_body={"temprature": 1})
    assert caught.value.param == "temprature"


def test_wrong_key_is_an_authentication_error(base_url: str) -> None:
    wrong = OpenAI(base_url=base_url, api_key="sopllm_00000000_" + "x" * 43, max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong.chat.completions.create(model=ECHO, messages=[USER])


def test_same_idempotency_key_with_another_body_is_a_conflict(client: OpenAI) -> None:
    headers = {"Idempotency-Key": "clients-test-openai"}
    client.chat.completions.create(model=ECHO, messages=[USER], extra_headers=headers)
    with pytest.raises(openai.ConflictError):
        client.chat.completions.create(
            model=ECHO, messages=[USER], max_tokens=5, extra_headers=headers
        )


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_tool_is_called_and_its_result_is_answered(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=messages,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=64,
        temperature=0,
    )
    assert first.choices[0].finish_reason == "tool_calls"
    [call] = first.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    second = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=[*messages, first.choices[0].message, result],
        tools=[WEATHER],
        tool_choice="none",
        max_tokens=16,
    )
    assert second.choices[0].message.content


def test_streamed_tool_call_has_the_arguments_in_parts(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "What is the weather in Rome?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        max_tokens=64,
        temperature=0,
    ) as stream:
        answer = stream.get_final_completion()
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_probabilities_of_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL, messages=[USER], max_tokens=4, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    assert 1 <= len(tokens) <= 4
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)


@pytest.mark.parametrize("streamed", [False, True])
def test_characters_of_several_tokens_are_whole(client: OpenAI, streamed: bool) -> None:
    text = "媽 says 😀, naïve"
    asked: Any = {
        "model": CHAT_MODEL,
        "messages": [USER],
        "logprobs": True,
        "top_logprobs": 0,
        "extra_body": {"response_format": {"type": "choice", "choices": [text]}},
    }
    if streamed:
        choices = [
            chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)
        ]
        said = [choice.delta.content or "" for choice in choices]
    else:
        choices = client.chat.completions.create(**asked).choices
        said = [choices[0].message.content]
    assert "".join(said) == text
    tokens = [token for each in choices if each.logprobs for token in each.logprobs.content]
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
    assert not any(token.top_logprobs for token in tokens)


def test_prompts_are_answered_alike_streamed_and_whole(client: OpenAI) -> None:
    asked: Any = {
        "model": CHAT_MODEL,
        "prompt": ["1, 2, 3, 4,", "a, b, c, d,"],
        "n": 2,
        "seed": 7,
        "max_tokens": 6,
        "extra_body": {"deterministic": True},
    }
    whole = client.completions.create(**asked)
    texts, reasons = [""] * 4, {}
    for chunk in client.completions.create(**asked, stream=True):
        [choice] = chunk.choices
        assert choice.index not in reasons
        texts[choice.index] += choice.text
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


def test_response_goes_on_from_the_previous_one(client: OpenAI) -> None:
    first = client.responses.create(model=ECHO, input="first")
    assert first.output_text == "first"
    second = client.responses.create(
        model=CHAT_MODEL, input="And now?", previous_response_id=first.id, max_output_tokens=8
    )
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens


def test_background_response_is_resumed_and_cancelled(client: OpenAI) -> None:
    words = " ".join(f"word{number}" for number in range(20))
    response = client.responses.create(model=SLOW_ECHO, input=words, background=True, stream=True)
    seen = []
    for event in response:
        seen.append(event.sequence_number)
        if event.type == "response.created":
            response_id = event.response.id
        if len(seen) == 6:
            break
    response.close()
    rest = client.responses.retrieve(response_id, stream=True, starting_after=seen[-1])
    events = list(rest)
    numbers = [*seen, *(event.sequence_number for event in events)]
    assert numbers == sorted(set(numbers))
    assert events[-1].response.output_text == words

    long = client.responses.create(model=SLOW_ECHO, input=words * 20, background=True)
    assert long.status in ("queued", "in_progress")
    assert client.responses.cancel(long.id).status == "cancelled"
    client.responses.delete(long.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(long.id)


def test_batch_of_a_file(client: OpenAI) -> None:
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": ECHO, "messages": [{"role": "user", "content": f"text {number}"}]},
        }
        for number in range(20)
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    give_up_at = time.monotonic() + 60
    while batch.status not in ("completed", "failed") and time.monotonic() < give_up_at:
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (20, 0)
    output = [
        json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()
    ]
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
    answers = [line["response"]["body"]["choices"][0]["message"]["content"] for line in output]
    assert answers == [f"text {number}" for number in range(20)]
    client.files.delete(file.id)
