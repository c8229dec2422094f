"""Vectors and scores of a provider: in the order of their texts, or a failure."""

from collections.abc import Iterator
from typing import Any

import pytest

from inference.embeddings.cloud import embed, rank
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from monitoring.models import OwnerUse
from tests.cloud_server import KEY, CloudServer, Fault, Reply

pytestmark = pytest.mark.usefixtures("valkey")


@pytest.fixture(scope="module")
def server() -> Iterator[CloudServer]:
    with CloudServer() as running:
        yield running


@pytest.fixture
def model(server: CloudServer, monkeypatch: pytest.MonkeyPatch) -> RegisteredModel:
    monkeypatch.setenv("STAND_IN_API_KEY", KEY)
    config = {"model_name": "openai/e", "base_url": server.openai_url, "max_retries": 0}
    config["api_key_env_var"] = "STAND_IN_API_KEY"
    return RegisteredModel(pk=1, name="vectors", provider="embedding", config=config)


def row(number: Any, index: Any = None) -> dict[str, Any]:
    return {"object": "embedding", "embedding": [number, 1.0], "index": index}


def reply(data: Any, usage: Any = None) -> Reply:
    return Reply.of_json({"object": "list", "data": data, "model": "e", "usage": usage})


def test_vectors_come_by_index(server: CloudServer, model: RegisteredModel) -> None:
    server.faults.append(reply([row(2, 2), row(0, 0), row(1, 1)]))
    assert embed(model, ["a", "b", "c"], None).rows[:, 0].tolist() == [0, 1, 2]


@pytest.mark.django_db(transaction=True)
def test_owner_pays_for_vectors_also_for_unusable_ones(
    server: CloudServer, model: RegisteredModel
) -> None:
    model.config["input_cost_per_token"] = 0.25
    told = {"prompt_tokens": 8, "total_tokens": 8}
    server.faults.extend([reply([row(0)], told), reply([], told)])
    embed(model, ["a"], None, owner="ann")
    with pytest.raises(InferenceError):
        embed(model, ["a"], None, owner="ann")
    assert OwnerUse.objects.this_month("ann")["cost_usd"] == 4
    assert OwnerUse.objects.this_month("bob")["cost_usd"] == 0


def test_vectors_without_index_come_in_order(server: CloudServer, model: RegisteredModel) -> None:
    server.faults.append(reply([row(2), row(0)]))
    assert embed(model, ["a", "b"], None).rows[:, 0].tolist() == [2, 0]


@pytest.mark.parametrize(
    "data",
    [
        [row(0, 0)],
        [row(0, 0), row(1, 0)],
        [row(0, 0), row(1, 2)],
        [row(0, 0), row(1)],
        [row(0, 0), row(float("nan"), 1)],
        [row(0, 0), row(1e300, 1)],
        [row(0, 0), row("x", 1)],
        [row(0, 0), row([1], 1)],
        [row(0, 0), {"index": 1}],
        [row(0, 0), {"index": 1, "embedding": "AAAA"}],
        [row(0, 0), {"index": 1, "embedding": [1]}],
        [7, 8],
        [],
        7,
        None,
    ],
)
def test_other_vectors_are_a_failure(
    server: CloudServer, model: RegisteredModel, data: Any
) -> None:
    server.faults.append(reply(data))
    with pytest.raises(InferenceError) as caught:
        embed(model, ["a", "b"], None)
    assert caught.value.code in (ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_UNAVAILABLE)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1}, {"prompt_tokens": 1e400}])
def test_usage_is_a_number(server: CloudServer, model: RegisteredModel, usage: Any) -> None:
    server.faults.append(reply([row(0, 0)], usage))
    assert embed(model, ["a"], None).num_tokens == 0


RERANKERS = ("cohere/rerank-v3.5", "hosted_vllm/r", "jina_ai/r", "together_ai/r")


def reranker(server: CloudServer, model: RegisteredModel, name: str) -> RegisteredModel:
    is_below = name.partition("/")[0] in ("hosted_vllm", "together_ai")
    url = server.openai_url if is_below else server.url
    model.config |= {"model_name": name, "base_url": url, "is_reranker": True}
    return model


@pytest.mark.parametrize("name", RERANKERS)
def test_scores_come_in_the_order_of_the_texts(
    server: CloudServer, model: RegisteredModel, name: str
) -> None:
    ranked = rank(reranker(server, model, name), "what?", ["long", "", "mid"])
    assert ranked.rows[:, 0].tolist() == [pytest.approx(each) for each in (1 / 5, 1, 1 / 4)]
    assert ranked.num_tokens in (0, 3)  # Together tells none
    call = server.calls[-1]
    assert call.headers["Authorization"].lower() == f"bearer {KEY}"
    assert (call.body["model"], call.body["query"]) == (name.partition("/")[2], "what?")


def test_a_thousand_texts_are_ranked_at_a_time(server: CloudServer, model: RegisteredModel) -> None:
    texts = [str(number) * (number % 7) for number in range(1500)]
    ranked = rank(reranker(server, model, "hosted_vllm/r"), "what?", texts)
    assert ranked.rows[:, 0].tolist() == [pytest.approx(1 / (1 + len(text))) for text in texts]
    assert [len(call.body["documents"]) for call in server.calls[-2:]] == [1000, 500]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("name", "own_price", "dollars"),
    [
        ("cohere/rerank-v3.5", {}, 0.002),
        ("hosted_vllm/r", {}, 0),
        ("hosted_vllm/r", {"input_cost_per_token": 0.5}, 1),
    ],
)
def test_owner_pays_for_scores(
    server: CloudServer,
    model: RegisteredModel,
    name: str,
    own_price: dict[str, float],
    dollars: float,
) -> None:
    model.config |= own_price
    rank(reranker(server, model, name), "what?", ["a", "b"], owner="ann")
    assert OwnerUse.objects.this_month("ann")["cost_usd"] == dollars


@pytest.mark.parametrize(
    "results",
    [
        [],
        [{"index": 0, "relevance_score": 1}],
        [{"index": 0, "relevance_score": 1}, {"index": 2, "relevance_score": 1}],
        [{"index": 0, "relevance_score": 1}, {"index": 1, "relevance_score": "x"}],
        [{"index": 0, "relevance_score": 1}, {"index": 1}],
        None,
    ],
)
def test_other_scores_are_a_failure(
    server: CloudServer, model: RegisteredModel, results: Any
) -> None:
    server.faults.append(Reply.of_json({"results": results}))
    with pytest.raises(InferenceError) as caught:
        rank(reranker(server, model, "hosted_vllm/r"), "what?", ["a", "b"])
    assert caught.value.code in (ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_UNAVAILABLE)


def test_wrong_key_of_a_reranker_is_told(server: CloudServer, model: RegisteredModel) -> None:
    server.faults.append(Fault.UNAUTHORIZED)
    with pytest.raises(InferenceError) as caught:
        rank(reranker(server, model, "hosted_vllm/r"), "what?", ["a"])
    assert KEY not in caught.value.message
    assert caught.value.code == ErrorCode.AUTHENTICATION_FAILED
