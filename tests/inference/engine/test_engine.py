"""Scheduling, ends and refusals, with a model without weights."""

import itertools

import pytest

from inference.engine.engine import Engine, StepOutput
from inference.engine.errors import ConstraintError, InvalidRequestError, PromptTooLongError
from inference.engine.runner import Chunk
from inference.engine.scheduler import (
    MIN_PREFILL_TOKENS,
    TARGET_ALONE_SECONDS,
    TARGET_STEP_SECONDS,
    TILE_TOKENS,
)
from inference.engine.sequence import FinishReason, SamplingParams
from tests.inference.engine.fake_runner import FakeMemory, FakeRunner


def run(engine: Engine) -> None:
    while engine.num_unfinished:
        engine.step()


def assert_nothing_is_held(engine: Engine, runner: FakeRunner) -> None:
    cache = engine._kv_cache
    assert cache.num_free_cells == cache.num_cells
    assert cache.num_free_slots == runner.max_num_seqs
    assert runner.samplers == set()
    assert engine.num_unfinished == 0


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


def test_follow_up_computes_only_what_is_new() -> None:
    runner = FakeRunner(next_token=never_ending)
    engine = Engine(runner)
    first = engine.add_request("first", [1, 2, 3], SamplingParams(max_tokens=5))
    run(engine)
    turn = [*first.prompt_tokens, *first.output_tokens, 4]
    second = engine.add_request("second", turn, SamplingParams(max_tokens=1))
    runner.num_computed_tokens = 0
    run(engine)
    assert second.num_cached_tokens == 7
    assert runner.num_computed_tokens == 2


def test_prompt_of_another_owner_neither_waits_for_a_prefix_nor_reuses_it() -> None:
    runner = FakeRunner(max_batch_tokens=200, n_ctx_per_seq=200, next_token=never_ending)
    engine = Engine(runner)
    prompt, params = list(range(100)), SamplingParams(max_tokens=1)
    first, stranger, second = (
        engine.add_request(str(number), prompt, params, owner)
        for number, owner in enumerate(("one", "other", "one"))
    )
    run(engine)
    cached = [each.num_cached_tokens for each in (first, stranger, second)]
    assert cached == [0, 0, 99]


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.TIMEOUT])
def test_what_an_aborted_sequence_has_computed_is_kept(reason: FinishReason) -> None:
    engine = Engine(FakeRunner(n_ctx_per_seq=100))
    engine.add_request("first", list(range(60)), SamplingParams())
    engine.step()
    engine.abort("first", reason)
    second = engine.add_request("second", list(range(60)), SamplingParams())
    engine.step()
    assert second.num_cached_tokens == MIN_PREFILL_TOKENS


def test_failed_sequence_leaves_nothing_to_reuse() -> None:
    runner = FakeRunner(next_token=never_ending, fails=lambda num_decodes: num_decodes == 3)
    engine = Engine(runner)
    first = engine.add_request("first", [1, 2, 3], SamplingParams(max_tokens=9))
    run(engine)
    assert first.finish_reason == FinishReason.ERROR
    second = engine.add_request("second", [1, 2, 3], SamplingParams(max_tokens=2))
    run(engine)
    assert (second.num_cached_tokens, second.text) == (0, "xx")


def test_system_prompt_of_tasks_that_come_together_is_computed_once() -> None:
    runner = FakeRunner(n_ctx_per_seq=128, max_batch_tokens=32, next_token=never_ending)
    engine = Engine(runner)
    system = list(range(1, 91))
    sequences = [
        engine.add_request(str(tail), [*system, tail], SamplingParams(max_tokens=3))
        for tail in range(4)
    ]
    run(engine)
    assert [sequence.num_cached_tokens for sequence in sequences] == [0, 90, 90, 90]
    assert runner.num_computed_tokens == 90 + 4 * 3


def test_sequence_waits_for_what_it_shares_and_not_for_the_rest() -> None:
    runner = FakeRunner(n_ctx_per_seq=128, max_batch_tokens=32, next_token=never_ending)
    engine = Engine(runner)
    first = engine.add_request("first", list(range(100)), SamplingParams())
    second = engine.add_request("second", [*range(60), 200], SamplingParams(max_tokens=1))
    while first.is_prefilling:
        assert second.slot is None
        engine.step()
    assert second.num_cached_tokens == 60


def test_sequence_does_not_wait_for_a_prefix_that_is_no_longer_coming() -> None:
    runner = FakeRunner(n_ctx_per_seq=128, max_batch_tokens=32, next_token=never_ending)
    engine = Engine(runner)
    engine.add_request("first", list(range(100)), SamplingParams())
    engine.step()
    second = engine.add_request("second", [*range(90), 200], SamplingParams())
    engine.step()
    assert second.slot is None
    engine.abort("first", FinishReason.CANCELLED)
    engine.step()
    assert second.slot is not None
    assert second.num_cached_tokens >= MIN_PREFILL_TOKENS


def test_no_sequence_waits_for_a_prefix_that_cannot_be_copied() -> None:
    memory = FakeMemory(is_recurrent=True)
    runner = FakeRunner(n_ctx_per_seq=128, memory=memory, next_token=never_ending)
    engine = Engine(runner, clock=itertools.count().__next__)
    engine.add_request("first", [*range(90), 1], SamplingParams())
    second = engine.add_request("second", [*range(90), 2], SamplingParams())
    num_steps, num_left = divmod(91, MIN_PREFILL_TOKENS)
    for _ in range(num_steps):
        engine.step()
    assert second.slot is None
    engine.step()
    assert second.num_computed_tokens == MIN_PREFILL_TOKENS - num_left


def test_engine_may_run_fewer_sequences_than_the_runner_has_room_for() -> None:
    runner = FakeRunner(max_num_seqs=4, next_token=never_ending)
    engine = Engine(runner, max_num_seqs=1)
    prompts = [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
    sequences = [engine.add_request(str(p), p, SamplingParams(max_tokens=4)) for p in prompts]
    engine.step()
    assert [sequence.slot for sequence in sequences] == [0, None, None]
    run(engine)
    turns = [[*first.prompt_tokens, *first.output_tokens] for first in sequences]
    again = [engine.add_request(str(turn), turn, SamplingParams(max_tokens=1)) for turn in turns]
    run(engine)
    assert [sequence.num_cached_tokens for sequence in again] == [6, 6, 6]


class SlowRunner(FakeRunner):
    """Each token of a batch takes `seconds_per_token` on the clock."""

    def __init__(self, seconds_per_token: float) -> None:
        super().__init__(n_ctx_per_seq=2000, max_batch_tokens=512, next_token=never_ending)
        self.seconds_per_token = seconds_per_token
        self.now = 0.0
        self.longest_step = 0.0

    def decode(self, chunks: list[Chunk]) -> list[int]:
        seconds = self.seconds_per_token * sum(len(chunk.tokens) for chunk in chunks)
        self.longest_step = max(self.longest_step, seconds)
        self.now += seconds
        return super().decode(chunks)


@pytest.mark.parametrize(
    ("seconds_per_token", "num_tokens"),
    [(0.005, 38), (0.1, 16), (0.0001, 511), (0.002, TILE_TOKENS + 1), (0.0037, TILE_TOKENS + 1)],
)
def test_prompt_is_computed_in_pieces_that_take_the_time_of_a_step(
    seconds_per_token: float, num_tokens: int
) -> None:
    runner = SlowRunner(seconds_per_token)
    engine = Engine(runner, clock=lambda: runner.now)
    engine.add_request("answer", [1], SamplingParams(max_tokens=1000))
    engine.step()
    long = engine.add_request("long", [2] * 1900, SamplingParams(max_tokens=1))
    computed = [0]
    while long.is_prefilling:
        engine.step()
        computed.append(long.num_computed_tokens)
    pieces = [after - before for before, after in itertools.pairwise(computed)]
    assert pieces[0] == MIN_PREFILL_TOKENS
    assert max(pieces[:-1]) == num_tokens
    # With the answer's token; nearly a tile becomes a whole one, which may take a third longer.
    longest = max(TARGET_STEP_SECONDS, seconds_per_token * (num_tokens + 1))
    assert runner.longest_step <= longest * 1.01


def test_prompt_alone_is_computed_in_longer_steps_and_whole_tiles() -> None:
    runner = SlowRunner(0.002)
    engine = Engine(runner, clock=lambda: runner.now)
    long = engine.add_request("long", [2] * 1900, SamplingParams(max_tokens=1))
    computed = [0]
    while long.num_computed_tokens < 1000:
        engine.step()
        computed.append(long.num_computed_tokens)
    engine.add_request("answer", [1], SamplingParams(max_tokens=1000))
    while long.is_prefilling:
        engine.step()
        computed.append(long.num_computed_tokens)
    pieces = [after - before for before, after in itertools.pairwise(computed)]
    assert set(pieces[1:-1]) == {3 * TILE_TOKENS, TILE_TOKENS}
    assert runner.longest_step <= TARGET_ALONE_SECONDS


def test_max_tokens_ends_with_length() -> None:
    engine = Engine(FakeRunner(next_token=never_ending))
    sequence = engine.add_request("r", [1, 2], SamplingParams(max_tokens=3))
    run(engine)
    assert (sequence.text, sequence.finish_reason) == ("xxx", FinishReason.LENGTH)


def test_max_tokens_cuts_tokens_that_are_known_to_follow() -> None:
    runner = FakeRunner(next_token=never_ending, num_forced=lambda _tokens: 9)
    engine = Engine(runner)
    sequence = engine.add_request("r", [1, 2], SamplingParams(max_tokens=13))
    outputs = [engine.step()[0], engine.step()[0]]
    assert [(output.text, output.num_new_tokens) for output in outputs] == [
        ("x" * 10, 10),
        ("x" * 3, 3),
    ]
    assert (sequence.text, sequence.finish_reason) == ("x" * 13, FinishReason.LENGTH)
    assert_nothing_is_held(engine, runner)


@pytest.mark.parametrize(
    ("max_tokens", "finish_reason"), [(3, FinishReason.STOP), (2, FinishReason.LENGTH)]
)
def test_end_that_is_known_with_the_last_token_is_no_cut(
    max_tokens: int, finish_reason: FinishReason
) -> None:
    text = [*b"one", FakeRunner.END]
    runner = FakeRunner(
        next_token=lambda tokens: text[len(tokens) - 1], num_forced=lambda _tokens: 9
    )
    engine = Engine(runner)
    engine.add_request("r", [1], SamplingParams(max_tokens=max_tokens))
    (output,) = engine.step()
    assert (output.text, output.finish_reason) == ("one"[:max_tokens], finish_reason)


def test_stop_sequence_ends_amid_tokens_that_are_known_to_follow() -> None:
    text = b"one two three four five"
    runner = FakeRunner(
        next_token=lambda tokens: text[len(tokens) - 1], num_forced=lambda _tokens: 15
    )
    engine = Engine(runner)
    engine.add_request("r", [1], SamplingParams(max_tokens=50, stop=(" thr",)))
    (output,) = engine.step()
    assert (output.text, output.num_new_tokens) == ("one two", 11)
    assert output.finish_reason == FinishReason.STOP
    assert_nothing_is_held(engine, runner)


def test_known_tokens_share_the_batch_with_a_token_of_each_running_answer() -> None:
    runner = FakeRunner(
        max_num_seqs=4, max_batch_tokens=5, next_token=never_ending, num_forced=lambda _tokens: 9
    )
    engine = Engine(runner)
    sequences = [
        engine.add_request(str(number), [number], SamplingParams(max_tokens=30))
        for number in range(4)
    ]
    engine.step()
    before = [sequence.num_computed_tokens for sequence in sequences]
    engine.step()
    after = [sequence.num_computed_tokens for sequence in sequences]
    assert sorted(b - a for a, b in zip(before, after, strict=True)) == [1, 1, 1, 2]
    run(engine)
    assert [sequence.text for sequence in sequences] == ["x" * 30] * 4


def test_context_window_ends_with_length() -> None:
    engine = Engine(FakeRunner(n_ctx_per_seq=10, next_token=never_ending))
    sequence = engine.add_request("r", [1] * 6, SamplingParams(max_tokens=100))
    run(engine)
    assert (sequence.text, sequence.finish_reason) == ("xxxx", FinishReason.LENGTH)


def test_stop_sequence_may_be_the_name_of_a_control_token() -> None:
    runner = FakeRunner(next_token=lambda tokens: b"a bc"[len(tokens) % 4])
    runner.control_tokens = {"<b>": ord("b")}
    engine = Engine(runner)
    sequence = engine.add_request("r", [1], SamplingParams(max_tokens=50, stop=("none", "<b>")))
    while engine.num_unfinished:
        engine.step()
    assert (sequence.text, sequence.finish_reason) == (" ", FinishReason.STOP)


def test_stop_sequence_ends_with_stop_and_is_not_in_the_text() -> None:
    text = b"one two three"
    runner = FakeRunner(next_token=lambda tokens: text[len(tokens) - 1])
    engine = Engine(runner)
    sequence = engine.add_request("r", [1], SamplingParams(max_tokens=50, stop=(" thr",)))
    run(engine)
    assert (sequence.text, sequence.finish_reason) == ("one two", FinishReason.STOP)
    assert_nothing_is_held(engine, runner)


def test_abort_returns_the_text_held_back() -> None:
    engine = Engine(FakeRunner(next_token=never_ending))
    sequence = engine.add_request("r", [1], SamplingParams(max_tokens=50, stop=("xxxxx",)))
    assert [output.text for _ in range(3) for output in engine.step()] == ["", "", ""]
    last = engine.abort("r", FinishReason.TIMEOUT)
    assert last == StepOutput("r", "xxx", 0, FinishReason.TIMEOUT)
    assert sequence.text == "xxx"
    assert engine.abort("r", FinishReason.TIMEOUT) is None


def test_each_step_brings_its_own_text() -> None:
    engine = Engine(FakeRunner(next_token=never_ending))
    sequence = engine.add_request("r", [1], SamplingParams(max_tokens=4))
    outputs = [output for _ in range(4) for output in engine.step()]
    assert [output.text for output in outputs] == ["x"] * 4
    assert [output.finish_reason for output in outputs] == [None, None, None, FinishReason.LENGTH]
    assert sequence.text == "xxxx"


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
    assert output.error is failed.error
    assert str(output.error) == "The fake runner was told to fail."
    sequence = engine.add_request("b", [1], SamplingParams(max_tokens=2))
    run(engine)
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
    with pytest.raises(ConstraintError):
        engine.add_request("r", [1], SamplingParams(constraint="start: 1"))
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
