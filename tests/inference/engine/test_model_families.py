"""Models whose memory cannot be cut at will: sliding windows and recurrent states."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from inference.engine.engine import Engine
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams
from inference.engine.sequence import SamplingParams, Sequence
from tests.inference.engine.conftest import GEMMA_WINDOW
from tests.inference.engine.replay import MAX_TIE_OF_KERNELS, assert_same_but_for_ties, new_engine

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def gemma(gemma_params: LoadParams) -> Iterator[LlamaRunner]:
    loaded = LlamaRunner(gemma_params)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def mamba(mamba_path: Path) -> Iterator[LlamaRunner]:
    params = LoadParams(path=mamba_path, context_window=256, max_num_seqs=4, num_threads=1)
    loaded = LlamaRunner(params)
    yield loaded
    loaded.close()


def answer(engine: Engine, *prompts: list[int]) -> list[Sequence]:
    """The answers to prompts that arrive together."""
    sequences = [engine.add_request(str(p), p, GREEDY) for p in prompts]
    while engine.num_unfinished:
        engine.step()
    return sequences


def assert_as_without_cache(runner: LlamaRunner, *sequences: Sequence) -> None:
    for sequence in sequences:
        (alone,) = answer(new_engine(runner), sequence.prompt_tokens)
        assert alone.num_cached_tokens == 0
        assert_same_but_for_ties(runner, alone, sequence, MAX_TIE_OF_KERNELS)


def counting(runner: LlamaRunner, num_tokens: int) -> list[int]:
    text = " ".join(str(number) for number in range(num_tokens))
    return runner.tokenize(text)[:num_tokens]


def test_base_model_goes_on_with_the_raw_text(gemma: LlamaRunner) -> None:
    text = gemma.chat_template.render([{"role": "user", "content": "One, two, three, four,"}])
    (sequence,) = answer(new_engine(gemma), gemma.tokenize(text))
    assert sequence.text.startswith(" five")


def test_history_longer_than_the_window_is_continued(gemma: LlamaRunner) -> None:
    engine = new_engine(gemma)
    (first,) = answer(engine, counting(gemma, 300))
    turn = [*first.prompt_tokens, *first.output_tokens, *gemma.tokenize("And then?")[1:]]
    (second,) = answer(engine, turn)
    assert second.num_cached_tokens == 300 + len(first.output_tokens) - 1
    assert_as_without_cache(gemma, second)


def test_history_is_cut_as_long_as_its_window_is_there(gemma: LlamaRunner) -> None:
    engine = new_engine(gemma)
    (first,) = answer(engine, counting(gemma, 150))
    (second,) = answer(engine, [*first.prompt_tokens[:100], *first.prompt_tokens[:9]])
    assert second.num_cached_tokens == 100
    assert_as_without_cache(gemma, second)


def test_cut_beyond_the_window_falls_back_to_computing_all(gemma: LlamaRunner) -> None:
    engine = new_engine(gemma)
    (first,) = answer(engine, counting(gemma, 330))
    (second,) = answer(engine, [*first.prompt_tokens[:GEMMA_WINDOW], *first.prompt_tokens[:9]])
    assert second.num_cached_tokens == 0
    assert_as_without_cache(gemma, second)


def test_prefix_is_copied_between_sliding_windows(gemma: LlamaRunner) -> None:
    engine = new_engine(gemma)
    start = counting(gemma, 80)
    together = answer(engine, [*start, *start[:5]], [*start, *start[9:14]])
    assert [sequence.num_cached_tokens for sequence in together] == [0, 80]
    assert_as_without_cache(gemma, *together)


def test_one_buffer_of_windows_is_never_filled_up_by_copies(gemma_params: LoadParams) -> None:
    shared = LlamaRunner(replace(gemma_params, num_cache_cells=768))
    engine = new_engine(shared)
    start = counting(shared, 200)
    together = answer(engine, [*start, *start[:50]], [*start, *start[9:70]])
    assert [sequence.num_cached_tokens for sequence in together] == [0, 0]
    (turn,) = answer(engine, [*together[0].prompt_tokens, *together[0].output_tokens, *start[:9]])
    assert turn.num_cached_tokens == 250 + len(together[0].output_tokens) - 1
    assert_as_without_cache(shared, *together, turn)
    shared.close()


def test_recurrent_model_answers_several_at_once(mamba: LlamaRunner) -> None:
    prompts = [mamba.tokenize(text) for text in ("Once upon", "The sea", "abc", "x" * 40)]
    assert_as_without_cache(mamba, *answer(new_engine(mamba), *prompts))


def test_recurrent_history_is_continued(mamba: LlamaRunner) -> None:
    engine = new_engine(mamba)
    firsts = answer(engine, mamba.tokenize("a" * 50), mamba.tokenize("b" * 50))
    turns = [[*first.prompt_tokens, *first.output_tokens, 10, 11] for first in firsts]
    seconds = answer(engine, *turns)
    assert [second.num_cached_tokens for second in seconds] == [51 + 6 - 1] * 2
    assert_as_without_cache(mamba, *seconds)


def test_recurrent_history_is_never_cut_nor_copied(mamba: LlamaRunner) -> None:
    engine = new_engine(mamba)
    start = mamba.tokenize("a" * 60)
    answer(engine, [*start, 10, 11])
    others = answer(engine, [*start, 20], [*start, 10, 30], [*start, 10, 11])
    assert [other.num_cached_tokens for other in others] == [0, 0, 0]
    assert_as_without_cache(mamba, *others)
