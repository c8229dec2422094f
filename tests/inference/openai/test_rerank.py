"""POST /v1/rerank, up to the request queue and back; a tiny cross-encoder has chance weights."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_django import Settings
from rest_framework.test import APIClient

from inference.embeddings import answers
from inference.embeddings.batcher import RunningRequest
from inference.embeddings.loaded_encoders import loaded_encoders
from inference.embeddings.messages import Answer
from inference.embeddings.request_queue import QueuedRequest
from inference.models import RegisteredModel
from inference.registry import registration
from tests.conftest import Valkey
from tests.inference.api.test_embeddings import ask

pytestmark = pytest.mark.django_db(transaction=True)

RERANK = "/v1/rerank"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rain", "sun", "how", "is", "it"]
BODY: dict[str, Any] = {
    "model": "cross",
    "query": "how is it",
    "documents": ["rain", {"text": "sun"}, "it is rain"],
}


@pytest.fixture(scope="module")
def cross_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as people save theirs, with one label."""
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    tokenizers: Any = import_module("tokenizers")
    folder = tmp_path_factory.mktemp("models") / "cross"
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        initializer_range=0.5,
        num_labels=1,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    numbers = {word: number for number, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [(name, numbers[name]) for name in ("[SEP]", "[CLS]")]
    words.post_processor = tokenizers.processors.BertProcessing(*ends)
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP")}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=32, **special
    ).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _models(valkey: Valkey, echo: RegisteredModel, cross_folder: Path, settings: Settings) -> None:
    settings.MODELS_DIR = cross_folder.parent
    registration.register("cross", "embedding", {"model_path": "cross"})
    RegisteredModel.objects.create(name="vectors", provider="embedding", config={})


def compute(queued: QueuedRequest) -> Answer:
    """What the worker does with the cross-encoder."""
    model = RegisteredModel.objects.get(name="cross")
    running = RunningRequest.of(queued, loaded_encoders.load(model).encoder)
    rows = running.encoder.encode(queued.request.texts, running.prompt)
    return answers.answer(queued.request, rows, sum(running.lengths), running.truncated)


def test_cross_encoder_ranks_as_its_library_does(cross_folder: Path) -> None:
    library: Any = import_module("sentence_transformers")
    texts = ["rain", "sun", "it is rain"]
    reference = library.CrossEncoder(str(cross_folder), device="cpu")
    scores = reference.predict([(BODY["query"], text) for text in texts])
    assert len({round(float(score), 4) for score in scores}) == len(texts)
    response = ask(compute, BODY, RERANK)
    assert response.status_code == 200
    found = response.json()
    assert (found["object"], found["model"]) == ("list", "cross")
    # [CLS] query [SEP] text [SEP]
    assert found["usage"] == {"prompt_tokens": 7 + 7 + 9, "total_tokens": 23}
    assert found["results"] == [
        {
            "index": int(index),
            "relevance_score": pytest.approx(float(scores[index]), abs=1e-5),
            "document": {"text": texts[index]},
        }
        for index in np.argsort(-scores)
    ]
    best = ask(compute, BODY | {"top_n": 1, "return_documents": False}, RERANK).json()["results"]
    assert best == [{name: found["results"][0][name] for name in ("index", "relevance_score")}]


def test_embedding_model_ranks_by_cosine() -> None:
    def vectors(queued: QueuedRequest) -> Answer:
        assert queued.request.texts == ["how is it", "rain", "sun", "it is rain"]
        rows = np.array([[1, 0], [0, 2], [3, 0], [1, 1]], dtype=np.float32)
        return answers.answer(queued.request, rows, 8, [])

    found = ask(vectors, BODY | {"model": "vectors"}, RERANK).json()["results"]
    assert [result["index"] for result in found] == [1, 2, 0]
    assert [result["document"]["text"] for result in found] == ["sun", "it is rain", "rain"]
    assert found[0]["relevance_score"] == 1


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "gone"}, 404, "model"),
        ({"model": "echo"}, 400, "model"),
        ({"documents": []}, 400, "documents"),
        ({"documents": [{"txt": "a"}]}, 400, "documents"),
        ({"query": ""}, 400, "query"),
        ({"top_n": 0}, 400, "top_n"),
        ({"top_k": 1}, 400, "top_k"),
    ],
)
def test_refusal_names_the_parameter(
    api: APIClient, fields: dict[str, Any], status: int, param: str
) -> None:
    response = api.post(RERANK, BODY | fields, format="json")
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_cross_encoder_gives_no_vectors(api: APIClient) -> None:
    response = api.post("/v1/embeddings", {"model": "cross", "input": "a"}, format="json")
    assert response.status_code == 400
    assert "/v1/rerank" in response.json()["error"]["message"]
