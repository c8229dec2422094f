"""Drafts change when tokens are computed, and never which ones are chosen."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import structured_output
from inference.engine.drafts import Drafter, PromptLookup, StepTimes
from inference.engine.engine import Engine
from inference.engine.errors import ConstraintError, ModelLoadError
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import Chunk, LoadParams, Sampled
from inference.engine.sequence import FinishReason, SamplingParams, Sequence
from tests.inference.engine.fake_runner import FakeMemory, FakeRunner
from tests.inference.engine.replay import assert_same_but_for_ties, new_engine

RATES = [0.0, 0.0, 0.9, 0.9, 0.9, 0.9]
PASSAGE = (
    "On 12 March 2021 the ship Northern Star left Bergen for Halifax with 214 containers of dried"
    " fish, 38 of machine parts and 5 of books. Her master was Ingrid Solheim."
)


def repeating(tokens: list[int]) -> int:
    """Mostly what followed the last token before, now and then something else, or the end."""
    chance = zlib.crc32(repr(tokens).encode()) % 100
    if chance < 3:
        return FakeRunner.END
    earlier = [place for place, token in enumerate(tokens[:-1]) if token == tokens[-1]]
    return tokens[earlier[-1] + 1] if earlier and chance < 85 else chance


def forced(tokens: list[int]) -> int:
    return sum(tokens) % 4 if sum(tokens) % 3 == 0 else 0


class FailingRunner(FakeRunner):
    """Cannot choose what follows some texts."""

    def sample(self, sampler: int, row: int) -> Sampled:
        if sum(self._rows[row]) % 97 == 0:
            raise ConstraintError("it was told to fail")
        return super().sample(sampler, row)


@dataclass
class Answer:
    """All that a request got, without when it got it."""

    sequence: Sequence
    text: str = ""
    num_tokens: int = 0
    end: tuple[Any, ...] = ()

    @property
    def told(self) -> tuple[Any, ...]:
        error = str(self.sequence.error)
        return self.sequence.output_tokens, self.text, self.num_tokens, self.end, error


def answers(
    max_draft_tokens: int,
    requests: list[tuple[list[int], SamplingParams]],
    num_cancelled: int = 0,
    **memory: Any,
) -> list[Answer]:
    runner = FailingRunner(
        max_num_seqs=3,
        n_ctx_per_seq=120,
        max_batch_tokens=40,
        max_draft_tokens=max_draft_tokens,
        memory=FakeMemory(**memory),
        next_token=repeating,
        num_forced=forced,
    )
    engine = Engine(runner, clock=lambda: 0.0)
    asked: dict[str, Answer] = {}
    for number, (prompt, params) in enumerate(requests):
        name = str(number)
        asked[name] = Answer(engine.add_request(name, prompt, params))
        for output in engine.step():
            note(asked[output.request_id], output)
    while engine.num_unfinished:
        for output in engine.step():
            note(asked[output.request_id], output)
        for name in list(asked)[:num_cancelled]:
            if len(asked[name].sequence.output_tokens) >= 10 and (
                last := engine.abort(name, FinishReason.CANCELLED)
            ):
                note(asked[name], last)
    assert not runner.samplers
    return list(asked.values())


def note(answer: Answer, output: Any) -> None:
    assert output.num_accepted_drafts <= len(answer.sequence.output_tokens)
    answer.text += output.text
    answer.num_tokens += output.num_new_tokens
    if output.finish_reason is not None:
        answer.end = output.finish_reason, output.stop_sequence


PROMPTS = st.builds(
    lambda part, times, last: (part * times)[:60] + last,
    st.lists(st.integers(97, 104), min_size=1, max_size=12),
    st.integers(1, 8),
    st.lists(st.integers(97, 104), max_size=4),
)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 60),
    stop=st.sampled_from([(), ("ab",), ("gfe", "x")]),
    deterministic=st.sampled_from([False, False, False, True]),
)
MEMORIES = st.sampled_from(
    [{}, {"window": 20, "num_spare": 20}, {"is_recurrent": True}, {"loses": lambda n: n % 5 == 0}]
)


@given(st.lists(st.tuples(PROMPTS, PARAMS), min_size=1, max_size=5), MEMORIES)
@settings(max_examples=200, deadline=None)
def test_answers_are_those_without_drafts(
    requests: list[tuple[list[int], SamplingParams]], memory: dict[str, Any]
) -> None:
    without, drafted = answers(0, requests, **memory), answers(16, requests, **memory)
    assert [each.told for each in drafted] == [each.told for each in without]
    for each in drafted:
        if each.sequence.params.deterministic or memory.get("is_recurrent"):
            assert each.sequence.num_accepted_drafts + each.sequence.num_rejected_drafts == 0


def test_repeating_text_takes_fewer_steps_and_cancel_ends_it_between_two() -> None:
    prompt = list(b"the quick brown fox jumps over the quick brown fox")
    runner = FakeRunner(
        max_batch_tokens=40, n_ctx_per_seq=200, max_draft_tokens=16, next_token=copying(prompt)
    )
    engine = Engine(runner, clock=lambda: 0.0)
    sequence = engine.add_request("a", prompt, SamplingParams(max_tokens=100))
    for _ in range(20):
        engine.step()
    assert sequence.num_accepted_drafts > 30
    assert sequence.num_accepted_drafts < len(sequence.output_tokens) < 100
    last = engine.abort("a", FinishReason.CANCELLED)
    assert last is not None
    assert last.num_accepted_drafts == sequence.num_accepted_drafts
    held = runner.memory.tokens[0]
    assert held == (prompt + sequence.output_tokens)[: len(held)]


def copying(prompt: list[int]) -> Any:
    return lambda tokens: prompt[(len(tokens) - 20) % len(prompt)]


def test_history_with_rejected_drafts_is_continued_by_the_next_turn() -> None:
    prompt = list(b"abcdefgh abcdefgh abcdefg")
    runner = FakeRunner(
        max_batch_tokens=60, n_ctx_per_seq=200, max_draft_tokens=16, next_token=repeating
    )
    engine = Engine(runner, clock=lambda: 0.0)
    first = engine.add_request("a", prompt, SamplingParams(max_tokens=40))
    while engine.num_unfinished:
        engine.step()
    assert first.num_rejected_drafts > 0
    second = engine.add_request("b", prompt + first.output_tokens + [1], SamplingParams())
    engine.step()
    assert second.num_cached_tokens >= len(prompt) + len(first.output_tokens) - 1


def test_lookup_follows_the_latest_place_and_repeats_a_period() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 1, 2, 3], list(RATES))
    assert lookup.draft(4) == [5, 6, 1, 2]
    lookup.push(7)
    assert lookup.draft(4) == []
    for token in (1, 2, 3):
        lookup.push(token)
    assert lookup.draft(2) == [7, 1]
    assert lookup.draft(9) == [7, 1, 2, 3, 7, 1, 2, 3, 7]


def test_wrong_matches_are_soon_not_expected_any_more() -> None:
    rates = list(RATES)
    lookup = PromptLookup([1, 2, 3, 4], rates)
    assert len(PromptLookup([1, 2, 3, 4, 1, 2, 3], rates).reached(8)) == 8
    for token in range(100, 130):
        for each in (1, 2, 3, token):
            lookup.push(each)
    for each in (1, 2, 3):
        lookup.push(each)
    assert lookup.draft(1)
    assert lookup.reached(8) == []


def test_times_between_measured_ones_and_beyond() -> None:
    times = StepTimes()
    assert times.expected(4) is None
    times.measure(1, 10.0)
    assert times.expected(5) == 30.0
    times.measure(9, 26.0)
    assert times.expected(5) == 18.0
    assert times.expected(1) == 10.0


@pytest.mark.parametrize(("seconds_a_token", "is_drafted"), [(0.05, True), (1.0, False)])
def test_drafts_are_computed_where_they_pay(seconds_a_token: float, is_drafted: bool) -> None:
    runner = FakeRunner(n_ctx_per_seq=200, max_batch_tokens=64, max_draft_tokens=16)
    drafter = Drafter(runner, clock=lambda: 0.0)
    prompt = list(range(20)) * 3
    engine = Engine(runner)
    sequence = engine.new_sequence("a", prompt, SamplingParams())
    sequence.num_computed_tokens = len(prompt)
    drafter.add(sequence)
    for token in range(20):
        sequence.output_tokens.append(token)
        drafter.push(sequence, [token], [])
    batch = [(sequence, Chunk(0, len(prompt) + 19, [19], needs_logits=True))]
    drafter.measure(batch, 1.0)
    wide = replace(batch[0][1], drafts=[0] * 16)
    drafter.measure([(sequence, wide)], 1.0 + 16 * seconds_a_token)
    drafted = drafter.extend(batch)
    assert bool(drafted[0][1].drafts) == is_drafted
    # What costs too much is tried again now and then: the machine may have changed.
    assert any(drafter.extend(batch)[0][1].drafts for _ in range(60))


def mostly_right(tokens: list[int]) -> int:
    """What `unheard` says, now and then something else."""
    return 33 if sum(tokens) % 5 == 0 else unheard(tokens)


def unheard(tokens: list[int]) -> int:
    """A text that does not repeat itself."""
    return zlib.crc32(repr(tokens).encode()) % 256


def drafted_by_model(
    draft: FakeRunner | None, requests: list[tuple[list[int], SamplingParams]]
) -> tuple[FakeRunner, list[Sequence]]:
    runner = FakeRunner(
        max_num_seqs=2,
        n_ctx_per_seq=100,
        max_batch_tokens=40,
        max_draft_tokens=16,
        next_token=unheard,
    )
    engine = Engine(runner, clock=lambda: 0.0, draft_runner=draft)
    sequences = [
        engine.add_request(str(number), prompt, params)
        for number, (prompt, params) in enumerate(requests)
    ]
    while engine.num_unfinished:
        engine.step()
    return runner, sequences


@given(st.lists(st.tuples(PROMPTS, PARAMS), min_size=1, max_size=5), st.sampled_from([0, 5, 40]))
@settings(max_examples=100, deadline=None)
def test_answers_with_a_draft_model_are_those_without(
    requests: list[tuple[list[int], SamplingParams]], fails_at: int
) -> None:
    draft = FakeRunner(
        max_num_seqs=2,
        n_ctx_per_seq=100,
        max_batch_tokens=30,
        next_token=mostly_right,
        fails=lambda num_decodes: num_decodes == fails_at,
    )
    _, without = drafted_by_model(None, requests)
    _, drafted = drafted_by_model(draft, requests)
    for one, other in zip(without, drafted, strict=True):
        assert (other.output_tokens, other.text) == (one.output_tokens, one.text)
        assert other.finish_reason == one.finish_reason


def test_draft_model_saves_steps_of_the_large_one() -> None:
    draft = FakeRunner(
        max_num_seqs=2, n_ctx_per_seq=100, max_batch_tokens=30, next_token=mostly_right
    )
    request = [(list(range(40)), SamplingParams(max_tokens=50))]
    alone, _ = drafted_by_model(None, request)
    drafted, [sequence] = drafted_by_model(draft, request)
    assert sequence.num_accepted_drafts > 20
    assert sequence.num_rejected_drafts > 0
    assert drafted.num_decodes < alone.num_decodes - 20


@pytest.fixture(scope="module")
def drafting(model_path: Path) -> Iterator[LlamaRunner]:
    params = LoadParams(
        path=model_path,
        context_window=512,
        num_batch_tokens=63,
        max_num_seqs=4,
        num_threads=1,
        max_draft_tokens=16,
    )
    loaded = LlamaRunner(params)
    yield loaded
    loaded.close()


def asked(runner: LlamaRunner, text: str) -> list[int]:
    return runner.tokenize(runner.chat_template.render([{"role": "user", "content": text}]))


def all_answers(runner: LlamaRunner, *, is_drafting: bool) -> list[Sequence]:
    runner.max_draft_tokens = 16 if is_drafting else 0
    greedy = SamplingParams(temperature=0, max_tokens=48)
    form = structured_output.normalize(
        None, {"type": "object", "properties": {"ship": {"type": "string"}}}
    )
    assert form is not None
    copy = f"Repeat this text word for word:\n{PASSAGE}"
    requests = [
        (copy, greedy),
        (copy, replace(greedy, temperature=0.7, top_k=40, seed=11)),
        (copy, replace(greedy, stop=("Halifax",))),
        (copy, replace(greedy, repeat_penalty=1.05, frequency_penalty=0.1)),
        (copy, replace(greedy, logprobs=2)),
        (PASSAGE, replace(greedy, constraint=structured_output.constraint_for(form))),
        ("Write a poem about the sea.", greedy),
    ]
    engine = new_engine(runner)
    sequences = [
        engine.add_request(str(number), asked(runner, text), params)
        for number, (text, params) in enumerate(requests)
    ]
    logprobs: dict[str, list[Any]] = {}
    while engine.num_unfinished:
        for output in engine.step():
            logprobs.setdefault(output.request_id, []).extend(output.logprobs)
    for sequence in sequences:
        assert len(logprobs[sequence.request_id]) == (
            len(sequence.output_tokens) if sequence.params.logprobs else 0
        )
        assert [each.token for each in logprobs[sequence.request_id]] == [
            runner.token_to_bytes(token)
            for token in sequence.output_tokens
            if sequence.params.logprobs
        ]
    return sequences


def test_real_answers_are_those_without_drafts(drafting: LlamaRunner) -> None:
    without = all_answers(drafting, is_drafting=False)
    drafted = all_answers(drafting, is_drafting=True)
    for one, other in zip(without, drafted, strict=True):
        if one.params.temperature or one.params.repeat_penalty != 1 or one.params.constraint:
            assert other.output_tokens == one.output_tokens
        else:
            assert_same_but_for_ties(drafting, one, other)
    assert sum(each.num_accepted_drafts for each in drafted) > 40
    assert not any(each.num_accepted_drafts for each in without)


def test_sliding_window_is_whole_after_rejected_drafts(gemma_params: LoadParams) -> None:
    loaded = LlamaRunner(replace(gemma_params, max_draft_tokens=16))
    tokens = loaded.tokenize("The cat sat on the mat, and the dog lay by the door. " * 12)
    texts = []
    for is_drafting in (False, True):
        loaded.max_draft_tokens = 16 if is_drafting else 0
        engine = new_engine(loaded)
        sequence = engine.add_request("a", tokens, SamplingParams(temperature=0, max_tokens=80))
        while engine.num_unfinished:
            engine.step()
        texts.append(sequence.text)
    assert texts[0] == texts[1]
    assert sequence.num_accepted_drafts > 30
    loaded.close()


def test_recurrent_model_has_no_drafts(mamba_path: Path) -> None:
    params = LoadParams(path=mamba_path, context_window=256, num_threads=1, max_draft_tokens=16)
    loaded = LlamaRunner(params)
    assert not loaded.memory.can_cut
    engine = new_engine(loaded)
    sequence = engine.add_request(
        "a", loaded.tokenize("abcabcabcabc"), SamplingParams(max_tokens=30)
    )
    while engine.num_unfinished:
        engine.step()
    assert sequence.num_accepted_drafts + sequence.num_rejected_drafts == 0
    loaded.close()


def test_draft_model_of_another_vocabulary_is_refused(
    drafting: LlamaRunner, mamba_path: Path
) -> None:
    params = LoadParams(path=mamba_path, context_window=256, num_threads=1)
    other = LlamaRunner(params)
    with pytest.raises(ModelLoadError, match="another vocabulary"):
        other.check_drafts_for(drafting)
    with pytest.raises(ModelLoadError, match="cannot take back"):
        other.check_drafts_for(other)
    drafting.check_drafts_for(drafting)
    other.close()


def test_model_drafts_for_itself(drafting: LlamaRunner, model_path: Path) -> None:
    draft = LlamaRunner(
        LoadParams(path=model_path, context_window=512, max_num_seqs=4, num_threads=1)
    )
    drafting.max_draft_tokens = 16
    texts: list[str] = []
    for draft_runner in (None, draft):
        engine = Engine(drafting, clock=lambda: 0.0, draft_runner=draft_runner)
        sequences = [
            engine.add_request(
                str(number), asked(drafting, text), SamplingParams(temperature=0, max_tokens=30)
            )
            for number, text in enumerate(("What is salt?", "Write about owls."))
        ]
        while engine.num_unfinished:
            engine.step()
        texts += [sequence.text for sequence in sequences]
    assert texts[:2] == texts[2:]
    assert all(sequence.num_accepted_drafts > 15 for sequence in sequences)
    draft.close()
