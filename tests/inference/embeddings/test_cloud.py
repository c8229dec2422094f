"""Vectors of a provider: in the order of their texts, or a failure."""

from collections.abc import Iterator
from typing import Any

import pytest

from inference.embeddings.cloud import embed
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from monitoring.models import OwnerUse
from tests.cloud_server import KEY, CloudServer, Reply

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
