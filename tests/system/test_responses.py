"""The official openai package against /v1/responses of the running service."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from benchmarks.running_service import SMOLLM2, RunningService, wait_for
from tests.system.test_stream import another_web
from tests.webhook_receiver import receiving

WORDS = " ".join(f"word{number}" for number in range(30))


class City(BaseModel):
    name: str
    country: str


@pytest.fixture
def client(service: RunningService) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ended(client: OpenAI, response_id: str) -> Any:
    """The response once it has ended."""

    def read() -> Any:
        response = client.responses.retrieve(response_id)
        return response if response.status not in ("queued", "in_progress") else None

    return wait_for(read, every_seconds=0.1)


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def test_response_and_those_after_it(client: OpenAI) -> None:
    asked = client.responses.with_raw_response.create(
        model=SMOLLM2,
        instructions="Be brief.",
        input="What is the capital of France?",
        temperature=0,
        max_output_tokens=20,
    )
    first = asked.parse()
    assert asked.headers["X-Task-Id"] == first.id.replace("resp_", "task_")
    assert "Paris" in first.output_text
    assert first.usage is not None
    second = client.responses.create(
        model=SMOLLM2,
        input="And of Italy?",
        previous_response_id=first.id,
        temperature=0,
        max_output_tokens=20,
    )
    assert second.usage is not None
    assert second.usage.input_tokens > len(first.output_text.split())
    again = client.responses.retrieve(second.id)
    assert (again.previous_response_id, again.output_text) == (first.id, second.output_text)
    [item] = client.responses.input_items.list(second.id).data
    assert item.type == "message"
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    # The output, given back as input with other items.
    third = client.responses.create(
        model="echo",
        input=[*first.output, {"role": "user", "content": "Thanks"}],  # type: ignore[list-item]
    )
    assert third.output_text == "Thanks"


def test_streamed_response_is_the_same_text(client: OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": SMOLLM2,
        "input": "Say the alphabet.",
        "temperature": 0,
        "max_output_tokens": 30,
    }
    whole = client.responses.create(**fields)
    with client.responses.stream(**fields) as stream:
        events = list(stream)
    assert text_of(events) == whole.output_text
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))


def test_answer_is_parsed_into_a_pydantic_model(client: OpenAI) -> None:
    response = client.responses.parse(
        model=SMOLLM2,
        input="Paris is in France. Give that as JSON.",
        text_format=City,
        temperature=0,
        max_output_tokens=100,
    )
    assert isinstance(response.output_parsed, City)


def test_background_response_goes_on_and_its_stream_is_resumed(service: RunningService) -> None:
    with another_web(service) as (web, http):
        port = http.base_url.port
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as doomed:
            stream = doomed.responses.create(
                model="slow-echo", input=WORDS, background=True, stream=True
            )
            seen: list[Any] = []
            with suppress(httpx.HTTPError, openai.APIConnectionError):
                for event in stream:
                    seen.append(event)
                    if len(text_of(seen)) > 20:
                        web.kill()
    number = seen[0].response.id
    with OpenAI(base_url=f"{service.base_url}/v1", api_key="none") as client:
        rest = list(
            client.responses.retrieve(number, stream=True, starting_after=seen[-1].sequence_number)
        )
        assert text_of(seen + rest) == WORDS
        assert rest[-1].type == "response.completed"
        whole = list(client.responses.retrieve(number, stream=True))
        assert [each.sequence_number for each in whole] == [
            each.sequence_number for each in seen + rest
        ]
        assert ended(client, number).output_text == WORDS


def test_background_response_is_polled(client: OpenAI) -> None:
    response = client.responses.create(model=SMOLLM2, input="Hi", background=True)
    assert response.status == "queued"
    done = ended(client, response.id)
    assert done.status in ("completed", "incomplete")
    assert done.output_text


def test_cancelled_response_and_its_webhook(service: RunningService, client: OpenAI) -> None:
    with receiving() as receiver:
        response = client.responses.create(
            model="slow-echo",
            input=WORDS * 10,
            background=True,
            extra_body={"webhook_url": receiver.url()},
        )
        service.generating(response.id.replace("resp_", "task_"))
        cancelled = client.responses.cancel(response.id)
        assert cancelled.status == "cancelled"
        assert WORDS.startswith(cancelled.output_text[:50])
        [call] = wait_for(lambda: receiver.calls)
        secret = (service.var_dir / "webhook_secret").read_text()
        event: Any = client.webhooks.unwrap(call.body.decode(), call.headers, secret=secret)
    assert (event.type, event.data.id) == ("response.cancelled", response.id)


def test_client_that_goes_away_cancels_its_response(service: RunningService) -> None:
    async def leave() -> str:
        async with openai.AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key="none") as client:
            stream = await client.responses.create(model="slow-echo", input=WORDS, stream=True)
            async for event in stream:
                if event.type == "response.output_text.delta":
                    break
            await stream.close()
            return str(stream.response.headers["X-Task-Id"])

    task_id = asyncio.run(leave())
    wait_for(lambda: service.task(task_id)["status"] == "cancelled")


def test_errors_are_the_exceptions_of_the_package(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="echo", input="Hi", temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="gone", input="Hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as tools:
        client.responses.create(model="echo", input="Hi", tools=[{"type": "web_search"}])
    assert tools.value.param == "tools"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.responses.create(model=SMOLLM2, input=20_000 * "word ")
    assert too_long.value.code == "context_length_exceeded"
