"""POST /v1/rerank, up to the request queue and back; a tiny cross-encoder has chance weights."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
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
    model = transformers.BertForSequenceClassification(config)
    # llama.cpp takes query and text for segments of one kind.
    kinds = model.bert.embeddings.token_type_embeddings.weight.data
    kinds[1] = kinds[0]
    model.save_pretrained(folder)
    _write_gguf(folder.parent / "cross.gguf", model)
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


# By the names that BERT's tensors have in a folder of transformers, and in a GGUF file.
TENSORS = {
    "bert.embeddings.word_embeddings": "token_embd",
    "bert.embeddings.token_type_embeddings": "token_types",
    "bert.embeddings.position_embeddings": "position_embd",
    "bert.embeddings.LayerNorm": "token_embd_norm",
    "bert.encoder.layer.0.attention.self.query": "blk.0.attn_q",
    "bert.encoder.layer.0.attention.self.key": "blk.0.attn_k",
    "bert.encoder.layer.0.attention.self.value": "blk.0.attn_v",
    "bert.encoder.layer.0.attention.output.dense": "blk.0.attn_output",
    "bert.encoder.layer.0.attention.output.LayerNorm": "blk.0.attn_output_norm",
    "bert.encoder.layer.0.intermediate.dense": "blk.0.ffn_up",
    "bert.encoder.layer.0.output.dense": "blk.0.ffn_down",
    "bert.encoder.layer.0.output.LayerNorm": "blk.0.layer_output_norm",
    "bert.pooler.dense": "cls",
    "classifier": "cls.output",
}


def _write_gguf(path: Path, model: Any) -> None:
    """The model as llama.cpp's convert_hf_to_gguf.py writes it."""
    config = model.config
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_tokenizer_model("bert")
    writer.add_token_list([word if word[0] == "[" else f"\u2581{word}" for word in WORDS])
    writer.add_token_type_count(config.type_vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(WORDS))
    writer.add_bos_token_id(WORDS.index("[CLS]"))
    writer.add_eos_token_id(WORDS.index("[SEP]"))
    writer.add_sep_token_id(WORDS.index("[SEP]"))
    writer.add_pad_token_id(WORDS.index("[PAD]"))
    writer.add_unk_token_id(WORDS.index("[UNK]"))
    writer.add_add_bos_token(value=True)
    writer.add_add_eos_token(value=True)
    writer.add_add_sep_token(value=False)
    for name, tensor in model.state_dict().items():
        place, _, kind = name.rpartition(".")
        if place in TENSORS:
            writer.add_tensor(f"{TENSORS[place]}.{kind}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(autouse=True)
def _models(
    valkey: Valkey, echo: RegisteredModel, cross_folder: Path, settings: Settings
) -> Iterator[None]:
    settings.MODELS_DIR = cross_folder.parent
    registration.register("cross", "embedding", {"model_path": "cross"})
    registration.register("cross-gguf", "embedding", {"model_path": "cross.gguf"})
    RegisteredModel.objects.create(name="vectors", provider="embedding", config={})
    far = {"model_name": "cohere/rerank-v3.5", "api_key": "a-key", "is_reranker": True}
    registration.register("far", "embedding", far)
    yield
    for name in loaded_encoders.names:
        loaded_encoders.unload(name)


def compute(queued: QueuedRequest) -> Answer:
    """What the worker does with the cross-encoder."""
    model = RegisteredModel.objects.get(name=queued.request.model_name)
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


def test_gguf_ranks_as_the_same_weights_do_elsewhere() -> None:
    documents = ["rain", "sun", "it is rain", " ".join(100 * ["sun"])]
    expected, found = (
        ask(compute, BODY | {"model": name, "documents": documents}, RERANK).json()
        for name in ("cross", "cross-gguf")
    )
    scores = [pytest.approx(each["relevance_score"], abs=1e-3) for each in expected["results"]]
    assert [each["relevance_score"] for each in found["results"]] == scores
    indexes = [[each["index"] for each in answer["results"]] for answer in (expected, found)]
    assert indexes[0] == indexes[1]
    assert found["usage"] == expected["usage"]


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


@pytest.mark.parametrize("name", ["cross", "cross-gguf", "far"])
def test_what_ranks_gives_no_vectors(api: APIClient, name: str) -> None:
    response = api.post("/v1/embeddings", {"model": name, "input": "a"}, format="json")
    assert response.status_code == 400
    assert "/v1/rerank" in response.json()["error"]["message"]
