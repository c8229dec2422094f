"""A deterministic sequence gets the same logits and tokens, to the bit, in whatever situation."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.engine import Engine
from inference.engine.kv_cache import CHUNK_TOKENS
from inference.engine.llama_runner import LlamaRunner, llama
from inference.engine.runner import Chunk, LoadParams, Sampled
from inference.engine.sequence import SamplingParams, Sequence
from tests.inference.engine.conftest import GEMMA_WINDOW
from tests.inference.engine.fake_runner import FakeMemory, FakeRunner
from tests.inference.engine.replay import ANSWER_CONSTRAINT

NUM_NEW_TOKENS = 8
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_NEW_TOKENS, deterministic=True)
PARAMS = {
    "greedy": GREEDY,
    "sampled": replace(GREEDY, temperature=0.8, top_k=40, seed=7),
    "schema": replace(GREEDY, constraint=ANSWER_CONSTRAINT),
}
ORDINARY = SamplingParams(temperature=0, max_tokens=3 * NUM_NEW_TOKENS)


class RecordingRunner(LlamaRunner):
    """Keeps a digest of all logits that each sampler has seen."""

    def __init__(self, params: LoadParams) -> None:
        super().__init__(params)
        self.logits: dict[int, list[bytes]] = {}

    def sample(self, sampler: int, row: int) -> Sampled:
        pointer = llama.llama_get_logits_ith(self._context, row)
        logits = np.ctypeslib.as_array(pointer, (self.vocab_size,))
        self.logits.setdefault(sampler, []).append(sha256(logits.tobytes()).digest())
        return super().sample(sampler, row)


@pytest.fixture(scope="module")
def recording(model_path: Path) -> Iterator[RecordingRunner]:
    # Two threads, and more than 512 cells in use: llama.cpp's attention then adds up the parts of
    # its threads, which depend on how many cells there are.
    params = LoadParams(path=model_path, context_window=1024, max_num_seqs=8, num_threads=2)
    loaded = RecordingRunner(params)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def gemma(gemma_params: LoadParams) -> Iterator[RecordingRunner]:
    loaded = RecordingRunner(gemma_params)
    yield loaded
    loaded.close()


def counting(runner: LlamaRunner, start: int, num_tokens: int) -> list[int]:
    text = ", ".join(str(number) for number in range(start, start + num_tokens))
    return runner.tokenize(text)[:num_tokens]


def add(engine: Engine, prompt: list[int], params: SamplingParams) -> Sequence:
    return engine.add_request(f"request {engine.num_unfinished}", prompt, params)


def finish(engine: Engine) -> None:
    while engine.num_unfinished:
        engine.step()


def answer(engine: Engine, prompt: list[int], params: SamplingParams) -> Sequence:
    sequence = add(engine, prompt, params)
    finish(engine)
    return sequence


def assert_equal(runner: RecordingRunner, one: Sequence, other: Sequence) -> None:
    assert other.output_tokens == one.output_tokens
    assert runner.logits[other.sampler] == runner.logits[one.sampler]


def test_one_answer_cold_and_cached(recording: RecordingRunner) -> None:
    engine = Engine(recording)
    prompt = counting(recording, 1000, 300)
    cold = answer(engine, prompt, GREEDY)
    cached = answer(engine, prompt, GREEDY)
    assert cached.num_cached_tokens == 4 * CHUNK_TOKENS
    assert_equal(recording, cold, cached)

    # What ordinary sequences have computed is not reused, nor what does not fill a chunk.
    engine = Engine(recording)
    answer(engine, [*prompt[:150], 7], replace(GREEDY, max_tokens=2))
    answer(engine, prompt, ORDINARY)
    begun = answer(engine, prompt, GREEDY)
    assert begun.num_cached_tokens == 2 * CHUNK_TOKENS
    assert_equal(recording, cold, begun)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_one_answer_alone_and_in_company(
    recording: RecordingRunner, params: SamplingParams
) -> None:
    prompt = counting(recording, 1000, 300)
    alone = answer(Engine(recording), prompt, params)
    amid = amid_others(Engine(recording), recording, prompt, params, num_others=3)
    assert_equal(recording, alone, amid)


def amid_others(
    engine: Engine, runner: LlamaRunner, prompt: list[int], params: SamplingParams, num_others: int
) -> Sequence:
    """The answer beside others, some of them deterministic too, that begin before and after it."""
    others = [counting(runner, 5000 + 100 * i, 20 + 30 * i) for i in range(num_others)]
    for other in others[::2]:
        add(engine, other, ORDINARY)
    for _ in range(3):
        engine.step()
    amid = add(engine, prompt, params)
    engine.step()
    for other in others[1::2]:
        add(engine, other, replace(params, max_tokens=5))
    finish(engine)
    return amid


def test_one_answer_in_a_full_engine_and_after_eviction(recording: RecordingRunner) -> None:
    prompt = counting(recording, 1000, 300)
    cold = answer(Engine(recording), prompt, GREEDY)
    engine = Engine(recording)
    assert_equal(recording, cold, amid_others(engine, recording, prompt, GREEDY, num_others=7))
    for number in range(8):  # all slots hold something else
        add(engine, [100 + number, *range(200, 210)], replace(GREEDY, max_tokens=1))
    finish(engine)
    evicted = answer(engine, prompt, GREEDY)
    assert evicted.num_cached_tokens == 0
    assert_equal(recording, cold, evicted)


def test_prefix_is_copied_from_a_running_sequence(recording: RecordingRunner) -> None:
    prompt = counting(recording, 1000, 300)
    cold = answer(Engine(recording), prompt, GREEDY)
    engine = Engine(recording)
    add(engine, [*prompt[:200], 7], GREEDY)
    second = add(engine, prompt, GREEDY)
    finish(engine)
    assert second.num_cached_tokens == 3 * CHUNK_TOKENS
    assert_equal(recording, cold, second)


@pytest.mark.parametrize("num_tokens", [GEMMA_WINDOW + 100, 400])
def test_sliding_window_is_reused_only_before_its_cells_are(
    gemma: RecordingRunner, num_tokens: int
) -> None:
    engine = Engine(gemma)
    prompt = counting(gemma, 1000, num_tokens)
    cold = answer(engine, prompt, GREEDY)
    add(engine, counting(gemma, 5000, 50), ORDINARY)
    again = add(engine, prompt, GREEDY)
    finish(engine)
    assert bool(again.num_cached_tokens) == (num_tokens < 256)
    assert_equal(gemma, cold, again)


class BatchRecorder(FakeRunner):
    """Keeps the slots and sizes of each batch."""

    def __init__(self) -> None:
        super().__init__(n_ctx_per_seq=300, max_batch_tokens=256, next_token=lambda _tokens: 120)
        self.batches: list[list[tuple[int, int]]] = []

    def decode(self, chunks: list[Chunk]) -> list[int]:
        self.batches.append([(chunk.slot, len(chunk.tokens)) for chunk in chunks])
        return super().decode(chunks)


def test_deterministic_sequences_take_turns_after_each_batch_of_the_others() -> None:
    runner = BatchRecorder()
    engine = Engine(runner, clock=lambda: 0.0)
    for number in range(2):
        engine.add_request(f"ordinary {number}", [number], SamplingParams(max_tokens=20))
    for number in range(2):
        params = SamplingParams(max_tokens=4, deterministic=True)
        engine.add_request(f"deterministic {number}", [number] * 100, params)
    finish(engine)
    shared = [(0, 1), (1, 1)]
    alone = [[(2, 64)], [(3, 64)], [(2, 36)], [(3, 36)], *[[(2, 1)], [(3, 1)]] * 3]
    assert runner.batches[:20:2] == [shared] * 10
    assert runner.batches[1:20:2] == alone
    assert runner.batches[20:] == [shared] * 10


def test_without_deterministic_sequences_all_share_each_batch() -> None:
    runner = BatchRecorder()
    engine = Engine(runner, clock=lambda: 0.0)
    for number in range(3):
        engine.add_request(str(number), [number] * 5, SamplingParams(max_tokens=4))
    finish(engine)
    assert runner.batches == [[(0, 5), (1, 5), (2, 5)], *[[(0, 1), (1, 1), (2, 1)]] * 3]


class ShapedMemory(FakeMemory):
    """Knows of each token with how many others, and of how many sequences, it was computed."""

    def __init__(self, *, is_recurrent: bool = False, window: int | None = None) -> None:
        super().__init__(is_recurrent=is_recurrent, window=window, num_spare=24)
        self.shapes: dict[int, list[tuple[int, ...]]] = {}
        self.batch_shape: tuple[int, ...] = ()

    def keep_prefix(self, slot: int, num_tokens: int) -> bool:
        del self.shapes[slot][num_tokens:]
        return super().keep_prefix(slot, num_tokens)

    def copy_prefix(self, source: int, target: int, num_tokens: int) -> bool:
        self.shapes[target] = list(self.shapes[source])
        return super().copy_prefix(source, target, num_tokens)

    def remove_sequence(self, slot: int) -> None:
        self.shapes[slot] = []
        super().remove_sequence(slot)

    def extend(self, slot: int, start_position: int, tokens: list[int]) -> list[int]:
        self.shapes[slot] += [self.batch_shape] * len(tokens)
        return super().extend(slot, start_position, tokens)


class ShapedRunner(FakeRunner):
    def __init__(self, memory: ShapedMemory) -> None:
        super().__init__(
            max_num_seqs=3,
            n_ctx_per_seq=160,
            memory=memory,
            num_forced=lambda tokens: 20 * (sum(tokens) % 5 == 0),
        )

    def decode(self, chunks: list[Chunk]) -> list[int]:
        assert isinstance(self.memory, ShapedMemory)
        self.memory.batch_shape = tuple(len(chunk.tokens) for chunk in chunks)
        return super().decode(chunks)


def shapes_after_each_step(
    prompts: list[tuple[list[int], bool]], memory: ShapedMemory
) -> list[list[list[tuple[int, ...]]]]:
    """Of each prompt, deterministic or not, what its slot held; one arrives every third step."""
    engine = Engine(ShapedRunner(memory), clock=lambda: 0.0)
    sequences: list[Sequence] = []
    shapes: list[list[list[tuple[int, ...]]]] = [[] for _ in prompts]
    for step in itertools.count():
        if step % 3 == 0 and len(sequences) < len(prompts):
            prompt, is_deterministic = prompts[len(sequences)]
            params = SamplingParams(max_tokens=30, deterministic=is_deterministic)
            sequences.append(engine.add_request(str(step), prompt, params))
        engine.step()
        for seen, sequence in zip(shapes, sequences, strict=False):
            if sequence.slot is not None and sequence.num_computed_tokens:
                seen.append(list(memory.shapes[sequence.slot]))
        if len(sequences) == len(prompts) and not engine.num_unfinished:
            return shapes
    raise AssertionError("unreachable")


PROMPTS = st.builds(
    lambda first, length, last: [first] * length + [last],
    st.integers(0, 1),
    st.integers(0, 120),
    st.integers(0, 2),
)


@given(
    st.lists(st.tuples(PROMPTS, st.booleans()), min_size=1, max_size=9),
    st.sampled_from([{}, {"window": 40}, {"is_recurrent": True}]),
)
@settings(max_examples=100, deadline=None)
def test_each_token_is_computed_in_the_batch_that_it_has_alone(
    prompts: list[tuple[list[int], bool]], memory: dict[str, Any]
) -> None:
    together = shapes_after_each_step(prompts, ShapedMemory(**memory))
    for (prompt, is_deterministic), shapes in zip(prompts, together, strict=True):
        if is_deterministic:
            [alone] = shapes_after_each_step([(prompt, True)], ShapedMemory(**memory))
            assert all(seen == alone[-1][: len(seen)] for seen in shapes)
