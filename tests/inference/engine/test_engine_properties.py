"""Whatever comes and goes, on whatever memory: each request gets what it gets alone."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.engine import Engine, StepOutput
from inference.engine.kv_cache import common_prefix_length
from inference.engine.sequence import FinishReason, SamplingParams, Sequence
from tests.inference.engine.fake_runner import FakeMemory, FakeRunner

MAX_STEPS = 5000
N_CTX = 128


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    max_tokens: int
    arrives_at: int
    aborted_at: int | None


def run_alone(prompt: list[int], max_tokens: int, n_ctx: int = N_CTX) -> Sequence:
    """With an empty cache, token by token."""
    engine = Engine(FakeRunner(max_num_seqs=1, n_ctx_per_seq=n_ctx))
    sequence = engine.add_request("alone", prompt, SamplingParams(max_tokens=max_tokens))
    while engine.num_unfinished:
        engine.step()
    return sequence


@st.composite
def prompts(draw: st.DrawFn, earlier: list[Request]) -> list[int]:
    """One that begins like others, or that goes on where an earlier one's answer ended."""
    tail = draw(st.lists(st.integers(0, 255), min_size=1, max_size=20))
    previous = draw(st.sampled_from([None, *earlier]))
    if previous is None:
        history = [draw(st.integers(0, 1))] * 90
    else:
        history = previous.prompt + run_alone(previous.prompt, previous.max_tokens).output_tokens
    return (history[: draw(st.integers(0, N_CTX))] + tail)[: N_CTX - 1]


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    requests: list[Request] = []
    for _ in range(draw(st.integers(0, 10))):
        request = Request(
            prompt=draw(prompts(requests)),
            max_tokens=draw(st.integers(1, 40)),
            arrives_at=draw(st.integers(0, 60)),
            aborted_at=draw(st.none() | st.integers(0, 80)),
        )
        requests.append(request)
    return requests


@st.composite
def memories(draw: st.DrawFn) -> FakeMemory:
    losing = draw(st.sets(st.integers(1, 10), max_size=3))
    return draw(
        st.sampled_from(
            [
                FakeMemory(),
                FakeMemory(loses=losing.__contains__),
                FakeMemory(can_copy=False),
                FakeMemory(is_recurrent=True),
                FakeMemory(window=16, num_spare=8),
                FakeMemory(window=40, num_spare=40, loses=losing.__contains__),
            ]
        )
    )


RUNNERS = st.builds(
    FakeRunner,
    max_num_seqs=st.integers(1, 4),
    n_ctx_per_seq=st.just(N_CTX),
    num_cells=st.sampled_from([N_CTX, 200, 300, 4 * N_CTX]),
    max_batch_tokens=st.integers(4, 64),
    memory=memories(),
    # Known ones come after every third token or so, sometimes more than a batch holds.
    num_forced=st.sampled_from(
        [
            lambda _tokens: 0,
            lambda tokens: 7 * (sum(tokens) % 3 == 0),
            lambda tokens: tokens[-1] // 3,
        ]
    ),
)


@dataclass
class Session:
    """An engine, what was asked of it, and what it put out."""

    runner: FakeRunner
    requests: list[Request]
    num_running: int

    def __post_init__(self) -> None:
        self.engine = Engine(self.runner, self.num_running)
        self.sequences: dict[str, Sequence] = {}
        self.outputs: dict[str, list[StepOutput]] = {}

    def run(self) -> None:
        """Submit and abort at the steps asked for, until nothing is left."""
        for step in range(MAX_STEPS):
            self._arrive(step)
            self._abort(step)
            if not self.engine.num_unfinished and all(r.arrives_at <= step for r in self.requests):
                return
            for output in self.engine.step():
                self.outputs[output.request_id].append(output)
            self._check_books()
        raise AssertionError("the engine does not come to an end")

    def _arrive(self, step: int) -> None:
        for name, request in enumerate(self.requests):
            if request.arrives_at == step:
                params = SamplingParams(max_tokens=request.max_tokens)
                sequence = self.engine.add_request(str(name), request.prompt, params)
                self.sequences[str(name)] = sequence
                self.outputs[str(name)] = []

    def _abort(self, step: int) -> None:
        for name, request in enumerate(self.requests):
            if request.aborted_at == step and str(name) in self.sequences:
                last = self.engine.abort(str(name), FinishReason.CANCELLED)
                self.outputs[str(name)] += [last] if last else []

    def _check_books(self) -> None:
        """Books and memory agree; no more sequences and cells are in use than there may be."""
        cache, memory = self.engine._kv_cache, self.runner.memory
        for slot in range(self.runner.max_num_seqs):
            assert cache.tokens(slot) == memory.tokens.get(slot, [])
        running = [s for s in self.sequences.values() if s.slot is not None]
        assert len(running) == len({s.slot for s in running}) <= self.num_running
        assert cache.num_free_slots == self.runner.max_num_seqs - len(running)
        assert cache.num_free_cells == cache.num_cells - sum(s.max_cells for s in running) >= 0


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    runner = draw(RUNNERS)
    return Session(runner, draw(request_lists()), draw(st.integers(1, runner.max_num_seqs)))


def assert_nothing_is_held(session: Session) -> None:
    assert session.engine.num_unfinished == 0
    assert session.engine._kv_cache.num_free_slots == session.runner.max_num_seqs
    assert session.engine._kv_cache.num_free_cells == session.runner.num_cells
    assert session.runner.samplers == set()


@given(sessions())
@settings(max_examples=200, deadline=None)
def test_every_request_ends_once_with_the_text_it_has_alone(session: Session) -> None:
    session.run()
    assert_nothing_is_held(session)
    for name, request in enumerate(session.requests):
        sequence, received = session.sequences[str(name)], session.outputs[str(name)]
        assert [output.finish_reason for output in received[:-1]] == [None] * (len(received) - 1)
        assert received[-1].finish_reason == sequence.finish_reason
        assert "".join(output.text for output in received) == sequence.text
        assert received[-1].num_cached_tokens == sequence.num_cached_tokens
        assert sum(output.num_new_tokens for output in received) == len(sequence.output_tokens)
        alone = run_alone(request.prompt, request.max_tokens)
        if sequence.finish_reason == FinishReason.CANCELLED:
            assert request.aborted_at is not None
            assert alone.output_tokens[: len(sequence.output_tokens)] == sequence.output_tokens
        else:
            assert sequence.text == alone.text
            if sequence.finish_reason != alone.finish_reason:  # the end was known with the last one
                longer = run_alone(request.prompt, len(alone.output_tokens) + 1, N_CTX + 1)
                alone.finish_reason = longer.finish_reason
            assert sequence.finish_reason == alone.finish_reason


@given(sessions())
@settings(max_examples=100, deadline=None)
def test_cached_tokens_are_those_that_were_not_computed(session: Session) -> None:
    session.run()
    sequences = session.sequences.values()
    computed = sum(s.num_computed_tokens - s.num_cached_tokens for s in sequences)
    assert session.runner.num_computed_tokens == computed
    for sequence in sequences:
        others = [
            other.prompt_tokens + other.output_tokens for other in sequences if other != sequence
        ]
        shared = [common_prefix_length(sequence.prompt_tokens, other) for other in others]
        assert sequence.num_cached_tokens <= max(shared, default=0)
        assert sequence.num_cached_tokens < len(sequence.prompt_tokens)


@given(sessions(), st.sets(st.integers(1, 40), max_size=8))
@settings(max_examples=100, deadline=None)
def test_failed_batches_end_their_sequences_and_no_others(
    session: Session, failing: set[int]
) -> None:
    session.runner._fails = failing.__contains__
    session.run()
    assert_nothing_is_held(session)
    for name, request in enumerate(session.requests):
        sequence = session.sequences[str(name)]
        if sequence.finish_reason == FinishReason.ERROR:
            assert sequence.error
        elif sequence.finish_reason != FinishReason.CANCELLED:
            assert sequence.text == run_alone(request.prompt, request.max_tokens).text


@given(request_lists(), memories())
@settings(max_examples=50, deadline=None)
def test_requests_are_admitted_in_order_of_arrival(
    requests: list[Request], memory: FakeMemory
) -> None:
    engine = Engine(FakeRunner(max_num_seqs=3, num_cells=200, n_ctx_per_seq=N_CTX, memory=memory))
    sequences = [
        engine.add_request(str(i), request.prompt, SamplingParams(max_tokens=request.max_tokens))
        for i, request in enumerate(requests)
    ]
    admitted: list[str] = []
    while engine.num_unfinished:
        engine.step()
        started = [s for s in sequences if s.slot is not None or s.finish_reason is not None]
        admitted += [s.request_id for s in started if s.request_id not in admitted]
    assert admitted == [sequence.request_id for sequence in sequences]
