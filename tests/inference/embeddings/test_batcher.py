"""Which texts are computed together, and in which order."""

import threading
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.embeddings.batcher import Batch, Batcher
from inference.embeddings.encoders.base import Encoder, Vectors
from inference.embeddings.jobs import Job
from inference.embeddings.messages import EmbeddingRequest, UnknownPromptError
from inference.embeddings.request_queue import Letter
from tests.conftest import wait_until

BUDGET = 256


class Words(Encoder):
    """Counts words, and keeps nothing in memory."""

    is_parallel: ClassVar[bool] = True
    dimensions = 1
    max_tokens: int | None = 100

    def __init__(self) -> None:
        self.prompts = {"query": "q: "}

    def count_tokens(self, texts: list[str], prompt: str) -> list[int]:
        return [len((prompt + text).split()) for text in texts]

    def encode(self, texts: list[str], prompt: str) -> Vectors:
        return np.array([[len(text)] for text in texts], dtype=np.float32)


class OneAtATime(Words):
    is_parallel = False


def job(encoder: Encoder, *lengths: int, prompt_name: str | None = None) -> Job:
    texts = ["word " * length for length in lengths]
    request = EmbeddingRequest("m", texts, prompt_name=prompt_name)
    return Job.of(Letter("1-1", "key", request), encoder)


def batches_of(batcher: Batcher) -> list[Batch]:
    """All that waits, by one lane."""
    batches = []
    while batcher.num_texts:
        batches.append(batcher.next_batch())
        batcher.done(batches[-1])
    return batches


def lengths(batch: Batch) -> list[int]:
    return sorted(piece.length for piece in batch.pieces)


def padded_tokens(batch: Batch) -> int:
    return len(batch.pieces) * max(lengths(batch))


Jobs = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=12), min_size=1, max_size=8)


@given(Jobs, st.integers(1, 4))
def test_every_text_is_computed_once_within_the_budget(sizes: list[list[int]], lanes: int) -> None:
    batcher, encoder = Batcher(BUDGET, lanes), Words()
    jobs = [job(encoder, *each) for each in sizes]
    for each in jobs:
        batcher.add(each)
    batches = batches_of(batcher)
    pieces = [(piece.job, piece.index) for batch in batches for piece in batch.pieces]
    assert len(pieces) == len(set(pieces))
    assert set(pieces) == {(each, i) for each in jobs for i in range(len(each.lengths))}
    assert all(len(b.pieces) == 1 or padded_tokens(b) <= BUDGET for b in batches)
    assert not batcher._turns
    assert not batcher._waiting


def test_texts_of_one_length_are_computed_together() -> None:
    batcher, encoder = Batcher(BUDGET, 1), Words()
    batcher.add(job(encoder, 8, 60, 8, 60, 8, 60))
    batcher.add(job(encoder, 60, 8))
    assert [lengths(batch) for batch in batches_of(batcher)] == [[60] * 4, [8] * 4]


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    batcher, encoder = Batcher(BUDGET, 1), Words()
    large, small = job(encoder, *[50] * 100), job(encoder, 5)
    batcher.add(large)
    batcher.next_batch()
    batcher.add(small)
    first_two = [batcher.next_batch(), batcher.next_batch()]
    assert any(piece.job is small for batch in first_two for piece in batch.pieces)


def test_a_large_request_does_not_wait_for_many_small_ones() -> None:
    batcher, encoder = Batcher(BUDGET, 1), Words()
    large = job(encoder, *[90] * 10)
    batcher.add(large)
    for _ in range(8):
        batcher.add(job(encoder, *[5] * 60))
    nine = [batcher.next_batch() for _ in range(9)]
    assert any(piece.job is large for batch in nine for piece in batch.pieces)


def test_what_is_left_is_shared_out_between_lanes() -> None:
    batcher = Batcher(1024, 2)
    batcher.add(job(Words(), *[64] * 8))
    assert [len(batch.pieces) for batch in batches_of(batcher)] == [4, 2, 2]


def test_models_and_prompts_are_not_mixed() -> None:
    batcher, encoder, other = Batcher(BUDGET, 1), Words(), Words()
    batcher.add(job(encoder, 5))
    batcher.add(job(other, 5))
    batcher.add(job(encoder, 4, prompt_name="query"))
    assert [(b.encoder, b.prompt) for b in batches_of(batcher)] == [
        (encoder, ""),
        (other, ""),
        (encoder, "q: "),
    ]


def test_model_that_computes_alone_is_given_to_one_lane_at_a_time() -> None:
    batcher, alone, other = Batcher(100, 2), OneAtATime(), Words()
    batcher.add(job(alone, 90, 90))
    batcher.add(job(other, 5))
    first, second = batcher.next_batch(), batcher.next_batch()
    assert (first.encoder, second.encoder) == (alone, other)
    batcher.done(first)
    assert batcher.next_batch().encoder is alone


def test_dropped_job_is_not_computed() -> None:
    batcher, encoder = Batcher(BUDGET, 1), Words()
    dropped, kept = job(encoder, 5, 50), job(encoder, 6)
    batcher.add(dropped)
    batcher.add(kept)
    assert batcher.complete(dropped)
    assert not batcher.complete(dropped)
    assert [piece.job for batch in batches_of(batcher) for piece in batch.pieces] == [kept]


def test_lane_waits_until_there_is_something() -> None:
    batcher, found = Batcher(BUDGET, 1), []
    lane = threading.Thread(target=lambda: found.append(batcher.next_batch()), daemon=True)
    lane.start()
    batcher.add(job(Words(), 5))
    wait_until(lambda: found)
    lane.join(5)


def test_texts_beyond_the_window_are_named_and_counted_as_cut() -> None:
    made = job(Words(), 99, 100, 101, 3, 500)
    assert made.truncated == [2, 4]
    assert made.lengths == [99, 100, 100, 3, 100]


@pytest.mark.parametrize("make", [Words, OneAtATime])
def test_unknown_prompt_is_refused_with_the_known_ones(make: Callable[[], Encoder]) -> None:
    with pytest.raises(UnknownPromptError, match="no prompt passage, but query"):
        job(make(), 5, prompt_name="passage")


def test_padding_of_a_batch_stays_below_what_another_batch_costs() -> None:
    batcher, encoder = Batcher(1024, 1), Words()
    for length in range(1, 100):
        batcher.add(job(encoder, length))
    batches = batches_of(batcher)
    assert all(padded_tokens(each) - sum(lengths(each)) <= 1024 // 32 for each in batches)
    assert len(batches) < 20
