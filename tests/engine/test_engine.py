"""Scheduling, cells and ends, with a model without weights."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.engine import Engine, StepOutput
from inference.engine.errors import GrammarError, InvalidRequestError, PromptTooLongError
from inference.engine.fake_runner import FakeRunner
from inference.engine.sequence import FinishReason, SamplingParams, Sequence

MAX_STEPS = 5000


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    max_tokens: int
    arrives_at: int
    aborted_at: int | None


REQUESTS = st.lists(
    st.builds(
        Request,
        prompt=st.lists(st.integers(0, 255), min_size=1, max_size=60),
        max_tokens=st.integers(1, 40),
        arrives_at=st.integers(0, 30),
        aborted_at=st.none() | st.integers(0, 60),
    ),
    max_size=12,
)
RUNNERS = st.builds(
    FakeRunner,
    max_num_seqs=st.integers(1, 4),
    n_ctx_per_seq=st.just(64),
    num_cells=st.integers(64, 200),
    max_batch_tokens=st.integers(4, 32),
)


def run_alone(prompt: list[int], max_tokens: int) -> Sequence:
    engine = Engine(FakeRunner(max_num_seqs=1, n_ctx_per_seq=64))
    sequence = engine.add_request("alone", prompt, SamplingParams(max_tokens=max_tokens))
    while engine.has_unfinished:
        engine.step()
    return sequence


def run_all(
    engine: Engine, requests: list[Request]
) -> tuple[dict[str, Sequence], dict[str, list[StepOutput]]]:
    """Submit and abort at the steps asked for, until nothing is left."""
    sequences: dict[str, Sequence] = {}
    outputs: dict[str, list[StepOutput]] = {}
    for step in range(MAX_STEPS):
        for index, request in enumerate(requests):
            name = str(index)
            if request.arrives_at == step:
                params = SamplingParams(max_tokens=request.max_tokens)
                sequences[name] = engine.add_request(name, request.prompt, params)
                outputs[name] = []
            if request.aborted_at == step and name in sequences:
                last = engine.abort(name, FinishReason.CANCELLED)
                outputs[name] += [last] if last else []
        if not engine.has_unfinished and all(r.arrives_at <= step for r in requests):
            return sequences, outputs
        for output in engine.step():
            outputs[output.request_id].append(output)
    raise AssertionError("the engine does not come to an end")


def assert_nothing_is_held(engine: Engine, runner: FakeRunner) -> None:
    cache = engine._kv_cache
    assert cache.num_free_cells == cache.num_cells
    assert cache.num_free_slots == cache.num_slots
    assert runner.memory == {}
    assert runner.samplers == set()
    assert engine.num_unfinished == 0


@given(RUNNERS, REQUESTS)
@settings(max_examples=150, deadline=None)
def test_every_request_ends_once_with_the_text_it_has_alone(
    runner: FakeRunner, requests: list[Request]
) -> None:
    engine = Engine(runner)
    sequences, outputs = run_all(engine, requests)
    assert_nothing_is_held(engine, runner)
    for index, request in enumerate(requests):
        sequence, received = sequences[str(index)], outputs[str(index)]
        assert [output.finish_reason for output in received[:-1]] == [None] * (len(received) - 1)
        assert received[-1].finish_reason == sequence.finish_reason
        assert "".join(output.text for output in received) == sequence.text
        assert sum(output.num_new_tokens for output in received) == len(sequence.output_tokens)
        alone = run_alone(request.prompt, request.max_tokens)
        if sequence.finish_reason == FinishReason.CANCELLED:
            assert request.aborted_at is not None
            end = len(sequence.output_tokens)
            assert sequence.output_tokens == alone.output_tokens[:end]
        else:
            assert sequence.finish_reason == alone.finish_reason
            assert sequence.text == alone.text


@given(RUNNERS, REQUESTS, st.sets(st.integers(1, 40), max_size=8))
@settings(max_examples=100, deadline=None)
def test_failed_batches_end_their_sequences_and_no_others(
    runner: FakeRunner, requests: list[Request], failing: set[int]
) -> None:
    runner._fails = failing.__contains__
    engine = Engine(runner)
    sequences, _ = run_all(engine, requests)
    assert_nothing_is_held(engine, runner)
    for index, request in enumerate(requests):
        sequence = sequences[str(index)]
        if sequence.finish_reason == FinishReason.ERROR:
            assert sequence.error
        elif sequence.finish_reason != FinishReason.CANCELLED:
            assert sequence.text == run_alone(request.prompt, request.max_tokens).text


@given(REQUESTS)
@settings(max_examples=50, deadline=None)
def test_requests_are_admitted_in_order_of_arrival(requests: list[Request]) -> None:
    engine = Engine(FakeRunner(max_num_seqs=3, num_cells=100, n_ctx_per_seq=64))
    sequences = [
        engine.add_request(str(i), request.prompt, SamplingParams(max_tokens=request.max_tokens))
        for i, request in enumerate(requests)
    ]
    admitted: list[str] = []
    while engine.has_unfinished:
        engine.step()
        started = [s for s in sequences if s.slot is not None or s.finish_reason is not None]
        admitted += [s.request_id for s in started if s.request_id not in admitted]
    assert admitted == [sequence.request_id for sequence in sequences]


def never_ending(tokens: list[int]) -> int:
    return ord("x")


def test_running_answer_gets_a_token_in_every_step_of_a_long_prefill() -> None:
    runner = FakeRunner(max_batch_tokens=8, next_token=never_ending)
    engine = Engine(runner)
    engine.add_request("short", [1], SamplingParams(max_tokens=30))
    engine.step()
    engine.add_request("long", list(range(50)), SamplingParams(max_tokens=2))
    for _ in range(7):
        assert [output.request_id for output in engine.step()] == ["short"]
    assert [output.request_id for output in engine.step()] == ["short", "long"]


def test_max_tokens_ends_with_length() -> None:
    engine = Engine(FakeRunner(next_token=never_ending))
    sequence = engine.add_request("r", [1, 2], SamplingParams(max_tokens=3))
    while engine.has_unfinished:
        engine.step()
    assert (sequence.text, sequence.finish_reason) == ("xxx", FinishReason.LENGTH)


def test_context_window_ends_with_length() -> None:
    engine = Engine(FakeRunner(n_ctx_per_seq=10, next_token=never_ending))
    sequence = engine.add_request("r", [1] * 6, SamplingParams(max_tokens=100))
    while engine.has_unfinished:
        engine.step()
    assert (sequence.text, sequence.finish_reason) == ("xxxx", FinishReason.LENGTH)


def test_stop_sequence_ends_with_stop_and_is_not_in_the_text() -> None:
    text = b"one two three"
    runner = FakeRunner(next_token=lambda tokens: text[len(tokens) - 1])
    engine = Engine(runner)
    sequence = engine.add_request("r", [1], SamplingParams(max_tokens=50, stop=(" thr",)))
    while engine.has_unfinished:
        engine.step()
    assert (sequence.text, sequence.finish_reason) == ("one two", FinishReason.STOP)
    assert_nothing_is_held(engine, runner)


def test_abort_returns_the_text_held_back() -> None:
    engine = Engine(FakeRunner(next_token=never_ending))
    sequence = engine.add_request("r", [1], SamplingParams(max_tokens=50, stop=("xxxxx",)))
    for _ in range(3):
        engine.step()
    last = engine.abort("r", FinishReason.TIMEOUT)
    assert last == StepOutput("r", "xxx", 0, FinishReason.TIMEOUT)
    assert sequence.text == "xxx"
    assert engine.abort("r", FinishReason.TIMEOUT) is None


def test_end_of_generation_can_be_the_first_token() -> None:
    engine = Engine(FakeRunner(next_token=lambda _tokens: FakeRunner.END))
    engine.add_request("r", [1], SamplingParams())
    assert engine.step() == [StepOutput("r", "", 0, FinishReason.STOP)]
    assert engine.step() == []


def test_failure_is_told_in_words_and_the_engine_goes_on() -> None:
    runner = FakeRunner(fails=lambda num_decodes: num_decodes == 1, next_token=never_ending)
    engine = Engine(runner)
    failed = engine.add_request("a", [1], SamplingParams())
    (output,) = engine.step()
    assert output.finish_reason == FinishReason.ERROR
    assert output.error == failed.error == "The fake runner was told to fail."
    sequence = engine.add_request("b", [1], SamplingParams(max_tokens=2))
    while engine.has_unfinished:
        engine.step()
    assert sequence.text == "xx"


@pytest.mark.parametrize("prompt", [[], [-1], [5, 257]])
def test_bad_prompt_is_refused(prompt: list[int]) -> None:
    runner = FakeRunner()
    engine = Engine(runner)
    with pytest.raises(InvalidRequestError):
        engine.add_request("r", prompt, SamplingParams())
    assert_nothing_is_held(engine, runner)


def test_prompt_that_leaves_no_room_for_a_token_is_refused() -> None:
    engine = Engine(FakeRunner(n_ctx_per_seq=64, num_cells=32))
    engine.add_request("fits", [1] * 31, SamplingParams())
    with pytest.raises(PromptTooLongError) as refusal:
        engine.add_request("too long", [1] * 32, SamplingParams())
    assert refusal.value.max_prompt_tokens == 31


def test_second_request_of_the_same_name_is_refused() -> None:
    engine = Engine(FakeRunner())
    engine.add_request("r", [1], SamplingParams())
    with pytest.raises(InvalidRequestError, match="already"):
        engine.add_request("r", [1], SamplingParams())


def test_refused_grammar_leaves_nothing_behind() -> None:
    runner = FakeRunner()
    engine = Engine(runner)
    with pytest.raises(GrammarError):
        engine.add_request("r", [1], SamplingParams(grammar="root ::= 1"))
    assert_nothing_is_held(engine, runner)


def test_more_sequences_than_a_batch_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="max_num_seqs"):
        Engine(FakeRunner(max_num_seqs=8, max_batch_tokens=4))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2.0},
        {"frequency_penalty": 2.1},
        {"repeat_penalty": 0.0},
        {"seed": -1},
        {"max_tokens": 0},
        {"stop": ("",)},
    ],
)
def test_sampling_params_out_of_bounds_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError):
        SamplingParams(**values)  # type: ignore[arg-type]
