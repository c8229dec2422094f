"""The circuit of a cloud model, in a real Valkey whose clock the tests set."""

import contextlib
import itertools
import logging
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pytest_django import DjangoAssertNumQueries, Settings
from rest_framework.test import APIClient

from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.providers import circuit_breaker
from inference.providers.circuit_breaker import MAX_OPEN_SECONDS, Circuit, CircuitState, State
from monitoring.redis.client import client
from tests.conftest import Valkey

DOWN = InferenceError("down", ErrorCode.PROVIDER_UNAVAILABLE, retryable=True)
SLOW = InferenceError("slow", ErrorCode.PROVIDER_TIMEOUT, retryable=True)
KEY_REFUSED = InferenceError("who?", ErrorCode.AUTHENTICATION_FAILED)
BUSY = InferenceError("busy", ErrorCode.RATE_LIMITED, retryable=True)
BAD_REQUEST = InferenceError("bad", ErrorCode.INVALID_REQUEST)

CLOCK = "tests:clock"
START_MS = 1_800_000_000_000
_pks = itertools.count(1)


def new_model() -> RegisteredModel:
    """Unsaved: a circuit needs a name and a number only."""
    pk = next(_pks)
    return RegisteredModel(pk=pk, name=f"cloud-{pk}", provider="openai")


def set_clock(seconds: float) -> None:
    client().set(CLOCK, START_MS + round(seconds * 1000))


def pass_time(seconds: float) -> None:
    client().incrby(CLOCK, round(seconds * 1000))


@pytest.fixture
def clock(valkey: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CIRCUIT_FAILURES = 5
    settings.CIRCUIT_OPEN_SECONDS = 10.0
    now, _, rest = circuit_breaker._PRELUDE.partition("local time")
    assert rest
    monkeypatch.setattr(
        circuit_breaker, "_PRELUDE", f"{now} return tonumber(redis.call('GET', '{CLOCK}')) end\n"
    )
    set_clock(0)


@pytest.fixture
def model(clock: None) -> RegisteredModel:
    return new_model()


def state_of(model: RegisteredModel) -> CircuitState:
    return circuit_breaker.states([model])[model.name]


def begin(model: RegisteredModel) -> Circuit:
    """A call that is let through."""
    found = Circuit(model)
    found.check()
    return found


def fail(model: RegisteredModel, times: int = 1, failure: InferenceError = DOWN) -> None:
    for _ in range(times):
        begin(model).failed(failure)


def refusal(model: RegisteredModel) -> InferenceError:
    with pytest.raises(InferenceError) as caught:
        Circuit(model).check()
    return caught.value


@pytest.mark.parametrize("failure", [DOWN, SLOW, KEY_REFUSED])
def test_failures_in_a_row_open_it(model: RegisteredModel, failure: InferenceError) -> None:
    fail(model, 4, failure)
    assert state_of(model) == CircuitState(State.CLOSED, failures=4)
    fail(model, 1, failure)
    retry_at = datetime.fromtimestamp(START_MS / 1000 + 10, UTC)
    assert state_of(model) == CircuitState(State.OPEN, failures=5, retry_at=retry_at)


def test_refused_call_is_told_when_to_come_again(model: RegisteredModel) -> None:
    fail(model, 5)
    pass_time(2.5)
    refused = refusal(model)
    assert (refused.code, refused.retryable) == (ErrorCode.PROVIDER_UNAVAILABLE, True)
    assert refused.retry_after == 7.5
    assert model.name in refused.message
    assert "7.5 s" in refused.message


@pytest.mark.parametrize("failure", [BUSY, BAD_REQUEST])
def test_other_failures_do_not_count(model: RegisteredModel, failure: InferenceError) -> None:
    fail(model, 4)
    fail(model, 10, failure)
    assert state_of(model) == CircuitState(State.CLOSED, failures=4)


def test_success_begins_the_count_anew(model: RegisteredModel) -> None:
    fail(model, 4)
    begin(model).succeeded()
    assert state_of(model) == CircuitState()
    fail(model, 4)
    assert state_of(model).state == State.CLOSED


def test_one_call_tries_when_the_time_is_over(model: RegisteredModel) -> None:
    fail(model, 5)
    pass_time(9.999)
    refusal(model)
    pass_time(0.001)
    assert state_of(model) == CircuitState(State.HALF_OPEN, failures=5)
    begin(model).succeeded()
    assert state_of(model) == CircuitState()


def test_others_are_refused_while_one_tries(model: RegisteredModel) -> None:
    fail(model, 5)
    pass_time(10)
    one = begin(model)
    pass_time(3)
    assert refusal(model).retry_after == 7
    one.succeeded()
    begin(model)


def test_open_time_doubles_up_to_a_limit_while_tries_fail(model: RegisteredModel) -> None:
    fail(model, 5)
    for seconds in (10, 20, 40, 80, 160, 300, 300):
        assert refusal(model).retry_after == seconds
        pass_time(seconds)
        fail(model)
    assert MAX_OPEN_SECONDS == 300
    pass_time(300)
    begin(model).succeeded()
    fail(model, 5)
    assert refusal(model).retry_after == 10


def test_try_whose_worker_dies_frees_the_way(model: RegisteredModel) -> None:
    fail(model, 5)
    pass_time(10)
    begin(model)
    pass_time(10)
    begin(model).succeeded()
    assert state_of(model).state == State.CLOSED


def test_slow_try_closes_it_also_after_another_was_let_in(model: RegisteredModel) -> None:
    fail(model, 5)
    pass_time(10)
    slow = begin(model)
    pass_time(10)
    second = begin(model)
    slow.succeeded()
    second.failed(DOWN)
    assert state_of(model) == CircuitState()


@pytest.mark.parametrize("failure", [BUSY, BAD_REQUEST])
def test_try_that_tells_nothing_lets_the_next_one_in(
    model: RegisteredModel, failure: InferenceError
) -> None:
    fail(model, 5)
    pass_time(10)
    begin(model).failed(failure)
    assert state_of(model).state == State.HALF_OPEN
    begin(model).succeeded()
    assert state_of(model).state == State.CLOSED


def test_late_call_that_tells_nothing_lets_no_one_in(model: RegisteredModel) -> None:
    late = begin(model)
    fail(model, 5)
    pass_time(10)
    begin(model)
    late.failed(BUSY)
    refusal(model)


def test_late_failures_do_not_prolong_or_reopen(model: RegisteredModel) -> None:
    calls = [begin(model) for _ in range(32)]
    for call in calls[:20]:
        call.failed(DOWN)
    assert refusal(model).retry_after == 10
    pass_time(10)
    begin(model).succeeded()
    for call in calls[20:]:
        call.failed(SLOW)
    assert state_of(model) == CircuitState()


def test_late_success_does_not_close_it(model: RegisteredModel) -> None:
    early = begin(model)
    fail(model, 5)
    early.succeeded()
    assert state_of(model).state == State.OPEN
    pass_time(10)
    early.succeeded()
    assert state_of(model).state == State.HALF_OPEN


def test_refused_call_counts_for_nothing(model: RegisteredModel) -> None:
    fail(model, 5)
    refused = Circuit(model)
    with pytest.raises(InferenceError) as caught:
        refused.check()
    pass_time(10)
    refused.failed(caught.value)
    refused.succeeded()
    assert state_of(model) == CircuitState(State.HALF_OPEN, failures=5)


def test_many_threads_open_it_once_and_one_of_them_tries(model: RegisteredModel) -> None:
    calls = [begin(model) for _ in range(32)]
    run_in_threads([lambda call=call: call.failed(DOWN) for call in calls])
    assert state_of(model).failures == 5
    assert refusal(model).retry_after == 10
    pass_time(10)
    admitted: list[Circuit] = []

    def ask() -> None:
        with contextlib.suppress(InferenceError):
            admitted.append(begin(model))

    run_in_threads([ask] * 32)
    assert len(admitted) == 1


def run_in_threads(functions: list[Any]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_circuits_of_models_are_their_own(model: RegisteredModel) -> None:
    other = new_model()
    fail(model, 5)
    begin(other)
    assert state_of(other) == CircuitState()


def test_model_that_is_registered_anew_begins_anew(clock: None, db: None) -> None:
    def register() -> RegisteredModel:
        return RegisteredModel.objects.create(name="again", provider="anthropic")

    first = register()
    late = begin(first)
    fail(first, 5)
    first.delete()
    second = register()
    begin(second)
    late.failed(DOWN)
    assert state_of(second) == CircuitState()


def test_circuit_that_nobody_uses_is_forgotten(model: RegisteredModel) -> None:
    fail(model, 5)
    assert 300 < client().ttl(circuit_breaker._key(model)) <= 3600
    pass_time(10)
    begin(model).succeeded()
    assert 0 < client().ttl(circuit_breaker._key(model)) <= 3600


class Counting:
    """A client that counts round trips."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.commands.append(name)
        return getattr(client(), name)


def test_healthy_call_takes_a_round_trip_before_and_one_after(
    model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    monkeypatch.setattr(circuit_breaker, "client", lambda: counting)
    call = begin(model)
    assert counting.commands == ["hmget"]
    call.succeeded()
    assert counting.commands == ["hmget", "eval"]
    assert not client().exists(circuit_breaker._key(model))
    circuit_breaker.states([model, *(new_model() for _ in range(50))])
    assert len(counting.commands) == 3


def test_without_redis_it_is_closed_and_says_so_once(
    model: RegisteredModel, valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    circuit_breaker._warned_at = float("-inf")
    call = begin(model)
    fail(model, 5)
    valkey.stop()
    for _ in range(3):
        begin(model).failed(DOWN)
    call.succeeded()
    assert state_of(model) == CircuitState()
    warnings = [
        r
        for r in caplog.records
        if r.name == "inference.providers.circuit_breaker" and "no Redis" in r.msg
    ]
    assert len(warnings) == 1


def test_opening_and_closing_are_logged(
    model: RegisteredModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "inference.providers.circuit_breaker"):
        fail(model, 5, SLOW)
        pass_time(10)
        begin(model).succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        f"Model {model.name} keeps failing (provider_timeout): its circuit is open for 10 s",
        f"Model {model.name} answers again: its circuit is closed",
    ]


def test_clock_is_that_of_redis(valkey: Valkey, settings: Settings) -> None:
    settings.CIRCUIT_FAILURES = 1
    settings.CIRCUIT_OPEN_SECONDS = 300
    model = new_model()
    fail(model)
    seconds, _ = client().time()
    retry_at = state_of(model).retry_at
    assert retry_at is not None
    assert abs(retry_at.timestamp() - seconds - 300) < 60


def test_local_models_have_none(valkey: Valkey) -> None:
    models = [RegisteredModel(pk=1, name=kind, provider=kind) for kind in ("local", "echo")]
    assert circuit_breaker.states(models) == {}
    assert circuit_breaker.states([]) == {}


def test_api_shows_circuits_in_one_query_of_the_page(
    api: APIClient, clock: None, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    RegisteredModel.objects.create(name="echo", provider="echo")
    cloud = [
        RegisteredModel.objects.create(name=f"m{i}", provider="openai_compatible") for i in range(3)
    ]
    fail(cloud[1], 5)
    with django_assert_max_num_queries(2):
        shown = {m["name"]: m["circuit"] for m in api.get("/api/v1/models").json()["models"]}
    closed = {"state": "closed", "failures": 0, "retry_at": None}
    retry_at = datetime.fromtimestamp(START_MS / 1000 + 10, UTC)
    opened = {"state": "open", "failures": 5, "retry_at": f"{retry_at:%Y-%m-%dT%H:%M:%SZ}"}
    assert shown == {"echo": None, "m0": closed, "m1": opened, "m2": closed}
    assert api.get("/api/v1/models/m1").json()["circuit"] == opened
    assert api.get("/api/v1/models/echo").json()["circuit"] is None


def test_metrics_show_which_are_open(api: APIClient, clock: None) -> None:
    up, down = (RegisteredModel.objects.create(name=n, provider="litellm") for n in ("up", "down"))
    fail(down, 5)
    fail(up, 4)
    lines = api.get("/metrics").content.decode().splitlines()
    found = {line for line in lines if line.startswith("sopllm_circuit_open{")}
    assert found == {
        'sopllm_circuit_open{model="up"} 0.0',
        'sopllm_circuit_open{model="down"} 1.0',
    }


class CircuitMachine(RuleBasedStateMachine):
    """Calls that begin, end and get lost in any order, while time goes on.

    What must hold is said from the calls' own history, not by a second implementation.
    """

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.model = new_model()
        self.now = 0.0
        set_clock(0)
        self.open_until: float | None = None
        self.open_seconds = 0.0
        self.tried_at = float("-inf")
        # Counted failures since the last success, of calls that began after the last change.
        self.streak = 0
        self.changes = 0

    @rule(seconds=st.sampled_from([0.5, 1, 4, 9.5, 10, 25, 100, 299.5, 300]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        set_clock(self.now)

    @rule(target=calls)
    def begin(self) -> Any:
        attempt = Circuit(self.model)
        is_free = self.open_until is None or (
            self.now >= self.open_until and self.now >= self.tried_at + 10
        )
        if not is_free:
            with pytest.raises(InferenceError) as caught:
                attempt.check()
            assert caught.value.retry_after is not None
            assert 0 < caught.value.retry_after <= MAX_OPEN_SECONDS
            return multiple()
        attempt.check()
        if self.open_until is not None:
            self.tried_at = self.now
        return (attempt, self.changes)

    @rule(call=consumes(calls))
    def succeed(self, call: tuple[Circuit, int]) -> None:
        attempt, began_at = call
        attempt.succeeded()
        if self.open_until is None:
            self.changes += self.streak > 0
            self.streak = 0
        elif began_at == self.changes:
            self.open_until, self.streak, self.open_seconds = None, 0, 0.0
            self.changes += 1

    @rule(call=consumes(calls), failure=st.sampled_from([DOWN, SLOW, KEY_REFUSED]))
    def fail(self, call: tuple[Circuit, int], failure: InferenceError) -> None:
        attempt, began_at = call
        attempt.failed(failure)
        if began_at != self.changes:
            return
        self.streak += 1
        if self.open_until is not None or self.streak >= 2:
            self.open_seconds = min(2 * self.open_seconds, 300) or 10
            self.open_until = self.now + self.open_seconds
            self.tried_at = float("-inf")
            self.changes += 1

    @rule(call=consumes(calls), failure=st.sampled_from([BUSY, BAD_REQUEST]))
    def fail_otherwise(self, call: tuple[Circuit, int], failure: InferenceError) -> None:
        attempt, began_at = call
        attempt.failed(failure)
        if self.open_until is not None and began_at == self.changes:
            self.tried_at = float("-inf")

    @rule(call=consumes(calls))
    def get_lost(self, call: tuple[Circuit, int]) -> None:
        """Its worker has died, or the task was cancelled."""

    @precondition(lambda self: self.open_until is not None)
    @rule()
    def wait_until_it_may_be_tried(self) -> None:
        assert self.open_until is not None
        self.now = max(self.now, self.open_until, self.tried_at + 10)
        set_clock(self.now)

    @invariant()
    def shows_what_happened(self) -> None:
        shown = state_of(self.model)
        assert shown.failures == self.streak
        if self.open_until is None:
            assert shown.state == State.CLOSED
        else:
            assert shown.state == (State.OPEN if self.now < self.open_until else State.HALF_OPEN)


@pytest.mark.usefixtures("clock")
def test_circuit_does_right_whatever_calls_do(settings: Settings) -> None:
    settings.CIRCUIT_FAILURES = 2
    run_state_machine_as_test(
        CircuitMachine,
        settings=hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None),
    )
