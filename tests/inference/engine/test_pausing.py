"""A sequence that is paused goes on as if it had not been: in its engine, or in another one."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.engine import Engine, PausedSequence
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import Chunk, LoadParams
from inference.engine.sequence import FinishReason, SamplingParams, Sequence
from tests.inference.engine.fake_runner import FakeMemory, FakeRunner
from tests.inference.engine.replay import ANSWER_CONSTRAINT

N_CTX = 128
NUM_NEW_TOKENS = 12
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_NEW_TOKENS, deterministic=True)
PARAMS = {
    "greedy": GREEDY,
    "sampled": replace(
        GREEDY, temperature=0.9, top_k=40, seed=7, repeat_penalty=1.2, frequency_penalty=0.5
    ),
    "schema": replace(GREEDY, constraint=ANSWER_CONSTRAINT),
    "stopped": replace(GREEDY, max_tokens=3 * NUM_NEW_TOKENS, stop=("1009, 10",)),
}


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    max_tokens: int
    arrives_at: int
    is_urgent: bool
    # At which of its steps it is paused, and how many others then pass.
    paused_at: int
    paused_for: int


REQUESTS = st.lists(
    st.builds(
        Request,
        prompt=st.builds(
            lambda first, length, last: [first] * length + [last],
            st.integers(0, 1),
            st.integers(0, 80),
            st.integers(0, 255),
        ),
        max_tokens=st.integers(1, 40),
        arrives_at=st.integers(0, 20),
        is_urgent=st.booleans(),
        paused_at=st.integers(0, 30),
        paused_for=st.integers(0, 20),
    ),
    max_size=8,
)
SHAPES = st.sampled_from([{}, {"can_copy": False}, {"is_recurrent": True}, {"window": 40}])


def alone(request: Request) -> Sequence:
    engine = Engine(FakeRunner(max_num_seqs=1, n_ctx_per_seq=N_CTX))
    params = SamplingParams(max_tokens=request.max_tokens)
    sequence = engine.add_request("alone", request.prompt, params)
    while engine.num_unfinished:
        engine.step()
    return sequence


class Pauses:
    """Runs requests, pausing each once; all go on in a new engine after `moves_at` steps."""

    def __init__(
        self, new_runner: Callable[[], FakeRunner], requests: list[Request], moves_at: int
    ) -> None:
        self._new_runner, self._requests, self._moves_at = new_runner, requests, moves_at
        self.runners = [new_runner()]
        self.engine = Engine(self.runners[0])
        self.sequences: dict[str, Sequence] = {}
        self.texts: dict[str, str] = {}
        self.ends: dict[str, FinishReason | None] = {}
        self._paused: dict[str, tuple[int, PausedSequence]] = {}
        self._num_steps: dict[str, int] = {}

    def run(self) -> None:
        for step in range(5000):
            for number, request in enumerate(self._requests):
                if request.arrives_at == step:
                    self._add(str(number), request)
            self._pause_and_resume(step)
            for output in self.engine.step():
                self._take(output.request_id, output.text, output.finish_reason)
            if len(self.ends) == len(self._requests):
                return
        raise AssertionError("the engine does not come to an end")

    def _add(self, name: str, request: Request) -> None:
        params = SamplingParams(max_tokens=request.max_tokens)
        sequence = self.engine.new_sequence(name, request.prompt, params)
        sequence.is_urgent = request.is_urgent
        self.sequences[name] = self.engine.add(sequence)
        self._num_steps[name] = 0

    def _pause_and_resume(self, step: int) -> None:
        is_moving = step == self._moves_at
        for name in [name for name in self.sequences if name not in self.ends]:
            if name in self._paused:
                continue
            request = self._requests[int(name)]
            if self._num_steps[name] == request.paused_at or is_moving:
                self._paused[name] = step + request.paused_for, self.engine.pause(name)
            self._num_steps[name] += 1
        if is_moving:
            assert self.engine.num_unfinished == 0
            self.runners.append(self._new_runner())
            self.engine = Engine(self.runners[-1])
        for name, (until, paused) in list(self._paused.items()):
            if until <= step and self.engine.has_room_for(paused):
                del self._paused[name]
                self.engine.resume(paused)

    def _take(self, name: str, text: str, reason: FinishReason | None) -> None:
        self.texts[name] = self.texts.get(name, "") + text
        if reason is not None:
            self.ends[name] = reason

    def assert_texts_are_those_alone(self) -> None:
        for number, request in enumerate(self._requests):
            assert self.texts[str(number)] == alone(request).text
        for runner in self.runners:
            assert (runner.samplers, runner.detached) == (set(), set())


@given(REQUESTS, SHAPES, st.sampled_from([N_CTX, 300, 4 * N_CTX]), st.integers(5, 60))
@settings(max_examples=150, deadline=None)
def test_paused_sequences_lose_repeat_and_compute_nothing_twice(
    requests: list[Request], shape: dict[str, bool], num_cells: int, moves_at: int
) -> None:
    def new_runner() -> FakeRunner:
        memory = FakeMemory(**shape)  # type: ignore[arg-type]
        return FakeRunner(n_ctx_per_seq=N_CTX, num_cells=num_cells, memory=memory)

    pauses = Pauses(new_runner, requests, moves_at)
    pauses.run()
    pauses.assert_texts_are_those_alone()
    computed = sum(s.num_computed_tokens - s.num_cached_tokens for s in pauses.sequences.values())
    assert sum(runner.num_computed_tokens for runner in pauses.runners) == computed


@given(REQUESTS, st.sets(st.integers(1, 12), max_size=6), st.integers(5, 60))
@settings(max_examples=100, deadline=None)
def test_what_cannot_be_saved_or_put_back_is_computed_again(
    requests: list[Request], losing: set[int], moves_at: int
) -> None:
    pauses = Pauses(
        lambda: FakeRunner(
            n_ctx_per_seq=N_CTX, memory=FakeMemory(loses=losing.__contains__), max_num_seqs=3
        ),
        requests,
        moves_at,
    )
    pauses.run()
    pauses.assert_texts_are_those_alone()


def test_paused_sequence_can_end_with_the_text_it_held_back() -> None:
    runner = FakeRunner(next_token=lambda _tokens: ord("x"))
    engine = Engine(runner)
    engine.add_request("one", [1], SamplingParams(stop=("xxxx",)))
    engine.step()
    engine.step()
    paused = engine.pause("one")
    assert engine.num_unfinished == 0
    last = paused.abort(FinishReason.CANCELLED)
    assert (last.text, last.finish_reason) == ("xx", FinishReason.CANCELLED)
    assert (runner.samplers, runner.detached) == (set(), set())


def test_urgent_sequence_goes_before_prompts_being_computed() -> None:
    engine = Engine(FakeRunner(max_num_seqs=2, n_ctx_per_seq=512), clock=lambda: 0.0)
    engine.add_request("long", [1] * 200, SamplingParams(max_tokens=4))
    engine.step()
    engine.add_request("waits", [2], SamplingParams(max_tokens=4))
    engine.add_request("waits too", [3], SamplingParams(max_tokens=4))
    urgent = engine.new_sequence("urgent", [4], SamplingParams(max_tokens=4))
    urgent.is_urgent = True
    engine.add(urgent)
    assert [output.request_id for output in engine.step()] == ["urgent"]


def test_engine_is_short_of_room_until_enough_are_paused() -> None:
    engine = Engine(FakeRunner(max_num_seqs=2, num_cells=128), clock=lambda: 0.0)
    for name in ("one", "other"):
        engine.add_request(name, [1, 2], SamplingParams(max_tokens=40))
        engine.step()
    assert not engine.is_short_of_room
    urgent = engine.new_sequence("urgent", list(range(50)), SamplingParams(max_tokens=14))
    urgent.is_urgent = True
    engine.add(urgent)
    assert engine.is_short_of_room
    paused = engine.pause("other")
    assert not engine.is_short_of_room
    assert not engine.has_room_for(paused)


class CountingRunner(LlamaRunner):
    """Counts the tokens that it computes."""

    num_tokens = 0

    def decode(self, chunks: list[Chunk]) -> list[int]:
        self.num_tokens += sum(len(chunk.tokens) for chunk in chunks)
        return super().decode(chunks)


@pytest.fixture(scope="module")
def params(model_path: Path) -> LoadParams:
    return LoadParams(path=model_path, context_window=512, max_num_seqs=2, num_threads=1)


def finish(engine: Engine) -> None:
    while engine.num_unfinished:
        engine.step()


def prompt_of(runner: LlamaRunner, num_tokens: int) -> list[int]:
    text = ", ".join(str(number) for number in range(1000, 1000 + num_tokens))
    return runner.tokenize(text)[:num_tokens]


def assert_goes_on_after_each_step(
    load: LoadParams, sampling: SamplingParams, *, has_to_reload: bool
) -> None:
    """Pause after each step, and go on after others had the slots; or in a model loaded anew."""
    runner = CountingRunner(load)
    prompt = prompt_of(runner, 100)
    engine = Engine(runner)
    whole = engine.add_request("whole", prompt, sampling)
    finish(engine)
    num_needed, runner.num_tokens = runner.num_tokens, 0
    engine = Engine(runner)
    broken = engine.add_request("broken", prompt, sampling)
    num_computed = 0
    for step in itertools.count(1):
        engine.step()
        if not engine.num_unfinished:
            break
        if has_to_reload and step not in (1, 4, 9):
            continue
        paused = engine.pause("broken")
        if has_to_reload:
            num_computed += runner.num_tokens
            runner.close()
            runner = CountingRunner(load)
            engine = Engine(runner)
        else:
            before = runner.num_tokens
            for name in ("a", "b"):
                other = [*prompt[:5], 100 + step]
                engine.add_request(name, other, SamplingParams(max_tokens=1))
            finish(engine)
            num_computed -= runner.num_tokens - before
        engine.resume(paused)
    assert broken.output_tokens == whole.output_tokens
    assert (broken.text, broken.finish_reason) == (whole.text, whole.finish_reason)
    assert num_computed + runner.num_tokens == num_needed
    runner.close()


@pytest.mark.parametrize("sampling", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("has_to_reload", [False, True], ids=["same engine", "loaded anew"])
def test_texts_of_real_weights_are_equal(
    params: LoadParams, sampling: SamplingParams, has_to_reload: bool
) -> None:
    assert_goes_on_after_each_step(params, sampling, has_to_reload=has_to_reload)
