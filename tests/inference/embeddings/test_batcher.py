"""Which texts are computed together, and in which order."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from inference.embeddings.batcher import Batcher, Item, RunningRequest
from inference.embeddings.encoders import base
from inference.embeddings.encoders.base import Encoder, Vectors
from inference.embeddings.messages import EmbeddingRequest, UnknownPromptError
from inference.embeddings.request_queue import QueuedRequest
from tests.conftest import wait_until

BUDGET = 256


class Words(Encoder):
    """Counts words, and keeps nothing in memory."""

    dimensions = 1
    max_tokens: int | None = 100

    def __init__(self) -> None:
        self.prompts = {"query": "q: "}

    def count_tokens(self, texts: list[str], prompt: str) -> list[int]:
        return [len((prompt + text).split()) for text in texts]

    def encode(self, texts: list[str], prompt: str) -> Vectors:
        return np.array([[len(text)] for text in texts], dtype=np.float32)


def running(encoder: Encoder, *lengths: int, prompt_name: str | None = None) -> RunningRequest:
    texts = ["word " * length for length in lengths]
    request = EmbeddingRequest("m", texts, prompt_name=prompt_name)
    return RunningRequest.of(QueuedRequest("1-1", "key", request), encoder)


def batches_of(batcher: Batcher) -> list[list[Item]]:
    """All that waits, by one thread."""
    batches = []
    while batcher.num_texts:
        batches.append(batcher.next_batch())
    return batches


def lengths(batch: list[Item]) -> list[int]:
    return sorted(item.length for item in batch)


def padded_tokens(batch: list[Item]) -> int:
    return len(batch) * max(lengths(batch))


Requests = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=12), min_size=1, max_size=8)


@given(Requests, st.integers(1, 4))
def test_every_text_is_computed_once_within_the_budget(
    sizes: list[list[int]], num_threads: int
) -> None:
    batcher, encoder = Batcher(num_threads, BUDGET), Words()
    requests = [running(encoder, *each) for each in sizes]
    for each in requests:
        batcher.add(each)
    batches = batches_of(batcher)
    items = [(item.request, item.index) for batch in batches for item in batch]
    assert len(items) == len(set(items))
    assert set(items) == {(each, i) for each in requests for i in range(len(each.lengths))}
    assert all(len(b) == 1 or padded_tokens(b) <= BUDGET for b in batches)
    assert not batcher._turns
    assert not batcher._waiting


def test_texts_of_one_length_are_computed_together() -> None:
    batcher, encoder = Batcher(1, BUDGET), Words()
    batcher.add(running(encoder, 8, 60, 8, 60, 8, 60))
    batcher.add(running(encoder, 60, 8))
    assert [lengths(batch) for batch in batches_of(batcher)] == [[60] * 4, [8] * 4]


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    batcher, encoder = Batcher(1, BUDGET), Words()
    large, small = running(encoder, *[50] * 100), running(encoder, 5)
    batcher.add(large)
    batcher.next_batch()
    batcher.add(small)
    first_two = [batcher.next_batch(), batcher.next_batch()]
    assert any(item.request is small for batch in first_two for item in batch)


def test_a_large_request_does_not_wait_for_many_small_ones() -> None:
    batcher, encoder = Batcher(1, BUDGET), Words()
    large = running(encoder, *[90] * 10)
    batcher.add(large)
    for _ in range(8):
        batcher.add(running(encoder, *[5] * 60))
    nine = [batcher.next_batch() for _ in range(9)]
    assert any(item.request is large for batch in nine for item in batch)


def test_what_is_left_is_shared_out_between_threads() -> None:
    batcher = Batcher(2, 1024)
    batcher.add(running(Words(), *[64] * 8))
    assert [len(batch) for batch in batches_of(batcher)] == [4, 2, 2]


def test_models_and_prompts_are_not_mixed() -> None:
    batcher, encoder, other = Batcher(1, BUDGET), Words(), Words()
    batcher.add(running(encoder, 5))
    batcher.add(running(other, 5))
    batcher.add(running(encoder, 4, prompt_name="query"))
    firsts = [batch[0].request for batch in batches_of(batcher)]
    assert [(each.encoder, each.prompt) for each in firsts] == [
        (encoder, ""),
        (other, ""),
        (encoder, "q: "),
    ]


def test_dropped_request_is_not_computed() -> None:
    batcher, encoder = Batcher(1, BUDGET), Words()
    dropped, kept = running(encoder, 5, 50), running(encoder, 6)
    batcher.add(dropped)
    batcher.add(kept)
    assert batcher.complete(dropped)
    assert not batcher.complete(dropped)
    assert [item.request for batch in batches_of(batcher) for item in batch] == [kept]


def test_thread_waits_until_there_is_something() -> None:
    batcher, found = Batcher(1, BUDGET), []
    thread = threading.Thread(target=lambda: found.append(batcher.next_batch()), daemon=True)
    thread.start()
    batcher.add(running(Words(), 5))
    wait_until(lambda: found)
    thread.join(5)


def test_texts_beyond_the_window_are_named_and_counted_as_cut() -> None:
    made = running(Words(), 99, 100, 101, 3, 500)
    assert made.truncated == [2, 4]
    assert made.lengths == [99, 100, 100, 3, 100]


def test_unknown_prompt_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownPromptError, match="no prompt passage, but query"):
        running(Words(), 5, prompt_name="passage")


@pytest.mark.parametrize(
    ("cores", "device", "expected"),
    [(1, "cpu", (1, 1)), (2, "cpu", (2, 1)), (32, "cpu", (4, 8)), (16, "cuda", (1, 16))],
)
def test_cores_are_shared_out(
    settings: Settings, cores: int, device: str, expected: tuple[int, int]
) -> None:
    settings.N_THREADS, settings.EMBEDDING_DEVICE = cores, device
    assert (base.num_threads(), base.cores_per_thread()) == expected


def test_batches_are_as_large_as_set_or_as_suits_the_device(settings: Settings) -> None:
    def largest_batch() -> int:
        batcher = Batcher(1)
        batcher.add(running(Words(), *[1] * 3000))
        return len(batcher.next_batch())

    settings.EMBEDDING_DEVICE = "cpu"
    on_cpu = largest_batch()
    settings.EMBEDDING_DEVICE = "cuda"
    assert largest_batch() > on_cpu
    settings.EMBEDDING_MAX_BATCH_TOKENS = 77
    assert largest_batch() == 77


def test_padding_of_a_batch_stays_below_what_another_batch_costs() -> None:
    batcher, encoder = Batcher(1, 1024), Words()
    for length in range(1, 100):
        batcher.add(running(encoder, length))
    batches = batches_of(batcher)
    assert all(padded_tokens(each) - sum(lengths(each)) <= 1024 // 32 for each in batches)
    assert len(batches) < 20
