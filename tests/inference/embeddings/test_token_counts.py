"""POST /v1/messages/count_tokens: what the worker counts is what a task's prompt then takes."""

from pathlib import Path
from typing import Any

import pytest

from inference.embeddings import token_counts
from inference.embeddings.messages import Answer
from inference.embeddings.request_queue import QueuedRequest
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams
from inference.models import RegisteredModel
from inference.providers import local
from inference.providers.base import GenerationRequest
from inference.registry import registration
from tests.conftest import Valkey
from tests.inference.api.test_embeddings import ask

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = "/v1/messages/count_tokens"
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "How is the weather in <|im_end|> Bonn?"},
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Bonn"}}],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "Rain."}]},
]
TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {}}}}


@pytest.fixture(autouse=True)
def _models(valkey: Valkey, echo: RegisteredModel, smollm2_file: Path) -> None:
    """One that runs here, and one that says the prompt again."""
    registration.register("smol", "local", {"model_path": smollm2_file.name})


def count(queued: QueuedRequest) -> Answer:
    """What the worker does."""
    model = RegisteredModel.objects.get(name=queued.request.model_name)
    return token_counts.count(model, queued.request)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": TURNS[:1]},
        {"messages": TURNS, "system": "Be brief.", "tools": [TOOL]},
        {"messages": TURNS[:1], "tools": [TOOL], "tool_choice": {"type": "any"}},
    ],
)
def test_count_is_that_of_the_loaded_model(fields: dict[str, Any], smollm2_file: Path) -> None:
    seen: list[dict[str, Any]] = []

    def reply(queued: QueuedRequest) -> Answer:
        assert queued.request.prompt is not None
        seen.append(queued.request.prompt)
        return count(queued)

    response = ask(reply, {"model": "smol", **fields}, f"{COUNT}?beta=true")
    assert response.status_code == 200
    [asked] = seen
    runner = LlamaRunner(LoadParams(path=smollm2_file, context_window=512, max_num_seqs=1))
    try:
        request = GenerationRequest(
            request_id="r",
            messages=asked["messages"],
            params=asked["params"],
            tools=asked.get("tools"),
            context_overflow="error",
        )
        assert response.json() == {"input_tokens": local.count_tokens(runner, request, 4096)[0]}
    finally:
        runner.close()


def test_words_of_an_echo_are_its_tokens() -> None:
    body = {"model": "echo", "system": "Be brief.", "messages": [{"role": "user", "content": "Hi"}]}
    assert ask(count, body, COUNT).json() == {"input_tokens": 3}


def test_count_of_a_cloud_model_has_its_tools() -> None:
    RegisteredModel.objects.create(name="cloud", provider="openai", config={"model_name": "m"})
    body = {"model": "cloud", "messages": TURNS}
    without = ask(count, body, COUNT).json()["input_tokens"]
    assert ask(count, body | {"tools": [TOOL]}, COUNT).json()["input_tokens"] > without > 10


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"model": "gone"}, 404, "gone"),
        ({"messages": []}, 400, "messages"),
        ({"containers": 1}, 400, "containers"),
    ],
)
def test_refusal_names_the_parameter(
    api: Any, fields: dict[str, Any], status: int, said: str
) -> None:
    response = api.post(COUNT, {"model": "smol", "messages": TURNS[:1]} | fields, format="json")
    assert response.status_code == status
    assert said in response.json()["error"]["message"]


def test_failure_of_the_worker_has_the_shape() -> None:
    body = {"model": "smol", "messages": TURNS[:1]}
    failed = ask(lambda _: Answer(error="Too odd.", field="messages"), body, COUNT)
    assert failed.status_code == 400
    assert failed.json()["error"]["message"] == "messages: Too odd."
    gone = ask(lambda _: Answer(error="The file is gone."), body, COUNT)
    assert (gone.status_code, gone.json()["error"]["type"]) == (503, "overloaded_error")
