"""Circuit breakers of cloud models, in a real Valkey whose keys the tests let expire."""

import contextlib
import itertools
import logging
import threading
import time
from datetime import datetime
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
from inference.providers.circuit_breaker import (
    MAX_OPEN_SECONDS,
    CircuitBreaker,
    CircuitState,
    State,
)
from monitoring.redis.client import client
from tests.conftest import Valkey

DOWN = InferenceError("down", ErrorCode.PROVIDER_UNAVAILABLE, retryable=True)
SLOW = InferenceError("slow", ErrorCode.PROVIDER_TIMEOUT, retryable=True)
KEY_REFUSED = InferenceError("who?", ErrorCode.AUTHENTICATION_FAILED)
BUSY = InferenceError("busy", ErrorCode.RATE_LIMITED, retryable=True)
BAD_REQUEST = InferenceError("bad", ErrorCode.INVALID_REQUEST)

# A second of the tests is this many real ones, so that the time they take makes no difference.
SCALE = 1000
_pks = itertools.count(1)


def new_model() -> RegisteredModel:
    """Unsaved: a circuit needs a name and a number only."""
    pk = next(_pks)
    return RegisteredModel(pk=pk, name=f"cloud-{pk}", provider="openai")


def pass_time(seconds: float) -> None:
    for key in client().keys("circuit:*:left_alone"):
        client().pexpire(key, client().pttl(key) - round(seconds * SCALE * 1000))


@pytest.fixture
def scaled(valkey: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CIRCUIT_FAILURES = 5
    settings.CIRCUIT_OPEN_SECONDS = 10.0 * SCALE
    monkeypatch.setattr(circuit_breaker, "MAX_OPEN_SECONDS", MAX_OPEN_SECONDS * SCALE)
    monkeypatch.setattr(circuit_breaker, "_KEPT_SECONDS", 3600 * SCALE)


@pytest.fixture
def model(scaled: None) -> RegisteredModel:
    return new_model()


def state_of(model: RegisteredModel) -> CircuitState:
    return circuit_breaker.states([model])[model.name]


def begin(model: RegisteredModel) -> CircuitBreaker:
    """A call that is let through."""
    found = CircuitBreaker(model)
    found.before_call()
    return found


def fail(model: RegisteredModel, times: int = 1, failure: InferenceError = DOWN) -> None:
    for _ in range(times):
        begin(model).on_failure(failure)


def refusal(model: RegisteredModel) -> InferenceError:
    with pytest.raises(InferenceError) as caught:
        CircuitBreaker(model).before_call()
    return caught.value


def seconds_left(model: RegisteredModel) -> float:
    """For how long a call is refused."""
    retry_after = refusal(model).retry_after
    assert retry_after is not None
    return round(retry_after / SCALE, 1)


@pytest.mark.parametrize("failure", [DOWN, SLOW])
def test_failures_in_a_row_open_it(model: RegisteredModel, failure: InferenceError) -> None:
    fail(model, 4, failure)
    assert state_of(model) == CircuitState(State.CLOSED, failures=4)
    fail(model, 1, failure)
    shown = state_of(model)
    assert (shown.state, shown.failures) == (State.OPEN, 5)
    assert shown.retry_at is not None
    assert abs(shown.retry_at.timestamp() - time.time() - 10 * SCALE) < 60


def test_refused_call_is_told_when_to_come_again(model: RegisteredModel) -> None:
    fail(model, 5)
    pass_time(2.5)
    refused = refusal(model)
    assert (refused.code, refused.retryable) == (ErrorCode.PROVIDER_UNAVAILABLE, True)
    assert seconds_left(model) == 7.5
    assert model.name in refused.message
    assert f"{refused.retry_after:.1f} s" in refused.message


@pytest.mark.parametrize("failure", [BUSY, BAD_REQUEST, KEY_REFUSED])
def test_other_failures_do_not_count(model: RegisteredModel, failure: InferenceError) -> None:
    fail(model, 4)
    fail(model, 10, failure)
    assert state_of(model) == CircuitState(State.CLOSED, failures=4)


def test_success_begins_the_count_anew(model: RegisteredModel) -> None:
    fail(model, 4)
    begin(model).on_success()
    assert state_of(model) == CircuitState()
    fail(model, 4)
    assert state_of(model).state == State.CLOSED


def test_one_call_tries_when_the_time_is_over(model: RegisteredModel) -> None:
    fail(model, 5)
    pass_time(9.999)
    refusal(model)
    pass_time(0.001)
    assert state_of(model) == CircuitState(State.HALF_OPEN, failures=5)
    begin(model).on_success()
    assert state_of(model) == CircuitState()


def test_others_are_refused_while_one_tries(model: RegisteredModel) -> None:
    fail(model, 5)
    pass_time(10)
    one = begin(model)
    pass_time(3)
    assert seconds_left(model) == 7
    one.on_success()
    begin(model)


def test_open_time_doubles_up_to_a_limit_while_tries_fail(model: RegisteredModel) -> None:
    fail(model, 5)
    for seconds in (10, 20, 40, 80, 160, 300, 300):
        assert seconds_left(model) == seconds
        pass_time(seconds)
        fail(model)
    assert MAX_OPEN_SECONDS == 300
    pass_time(300)
    begin(model).on_success()
    fail(model, 5)
    assert seconds_left(model) == 10


def test_try_whose_worker_dies_frees_the_way(model: RegisteredModel) -> None:
    fail(model, 5)
    pass_time(10)
    begin(model)
    pass_time(10)
    begin(model).on_success()
    assert state_of(model).state == State.CLOSED


def test_slow_try_closes_it_also_after_another_was_let_in(model: RegisteredModel) -> None:
    fail(model, 5)
    pass_time(10)
    slow = begin(model)
    pass_time(10)
    second = begin(model)
    slow.on_success()
    second.on_failure(DOWN)
    assert state_of(model) == CircuitState()


@pytest.mark.parametrize("failure", [BUSY, BAD_REQUEST, KEY_REFUSED])
def test_try_that_tells_nothing_lets_the_next_one_in(
    model: RegisteredModel, failure: InferenceError
) -> None:
    fail(model, 5)
    pass_time(10)
    begin(model).on_failure(failure)
    assert state_of(model).state == State.HALF_OPEN
    begin(model).on_success()
    assert state_of(model).state == State.CLOSED


def test_late_call_that_tells_nothing_lets_no_one_in(model: RegisteredModel) -> None:
    late = begin(model)
    fail(model, 5)
    pass_time(10)
    begin(model)
    late.on_failure(BUSY)
    refusal(model)


def test_late_failures_do_not_prolong_or_reopen(model: RegisteredModel) -> None:
    calls = [begin(model) for _ in range(32)]
    for call in calls[:20]:
        call.on_failure(DOWN)
    assert seconds_left(model) == 10
    pass_time(10)
    begin(model).on_success()
    for call in calls[20:]:
        call.on_failure(SLOW)
    assert state_of(model) == CircuitState()


def test_late_success_does_not_close_it(model: RegisteredModel) -> None:
    early = begin(model)
    fail(model, 5)
    early.on_success()
    assert state_of(model).state == State.OPEN
    pass_time(10)
    early.on_success()
    assert state_of(model).state == State.HALF_OPEN


def test_refused_call_counts_for_nothing(model: RegisteredModel) -> None:
    fail(model, 5)
    refused = CircuitBreaker(model)
    with pytest.raises(InferenceError) as caught:
        refused.before_call()
    pass_time(10)
    refused.on_failure(caught.value)
    refused.on_success()
    assert state_of(model) == CircuitState(State.HALF_OPEN, failures=5)


def test_many_threads_open_it_once_and_one_of_them_tries(model: RegisteredModel) -> None:
    calls = [begin(model) for _ in range(32)]
    run_in_threads([lambda call=call: call.on_failure(DOWN) for call in calls])
    assert state_of(model).failures == 5
    assert seconds_left(model) == 10
    pass_time(10)
    admitted: list[CircuitBreaker] = []

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


def test_model_that_is_registered_anew_begins_anew(scaled: None, db: None) -> None:
    def register() -> RegisteredModel:
        return RegisteredModel.objects.create(name="again", provider="anthropic")

    first = register()
    late = begin(first)
    fail(first, 5)
    first.delete()
    second = register()
    begin(second)
    late.on_failure(DOWN)
    assert state_of(second) == CircuitState()


def test_circuit_that_nobody_uses_is_forgotten(model: RegisteredModel) -> None:
    fail(model, 5)
    keys = client().keys(f"circuit:{model.pk}:*")
    assert len(keys) == 3
    assert all(0 < client().ttl(key) <= 3600 * SCALE for key in keys)
    pass_time(10)
    begin(model).on_success()
    [key] = client().keys(f"circuit:{model.pk}:*")
    assert 0 < client().ttl(key) <= 3600 * SCALE


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
    assert counting.commands == ["mget"]
    call.on_success()
    assert counting.commands == ["mget", "eval"]
    assert not client().keys(f"circuit:{model.pk}:*")
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
        begin(model).on_failure(DOWN)
    call.on_success()
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
        begin(model).on_success()
    assert [record.getMessage() for record in caplog.records] == [
        f"Model {model.name} keeps failing (provider_timeout): its circuit is open for 10000 s",
        f"Model {model.name} answers again: its circuit is closed",
    ]


def test_local_models_have_none(valkey: Valkey) -> None:
    models = [RegisteredModel(pk=1, name=kind, provider=kind) for kind in ("local", "echo")]
    assert circuit_breaker.states(models) == {}
    assert circuit_breaker.states([]) == {}


def test_api_shows_circuits_in_one_query_of_the_page(
    api: APIClient, scaled: None, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    RegisteredModel.objects.create(name="echo", provider="echo")
    cloud = [
        RegisteredModel.objects.create(name=f"m{i}", provider="openai_compatible") for i in range(3)
    ]
    fail(cloud[1], 5)
    with django_assert_max_num_queries(2):
        shown = {m["name"]: m["circuit"] for m in api.get("/api/v1/models").json()["models"]}
    closed = {"state": "closed", "failures": 0, "retry_at": None}
    retry_at = shown["m1"].pop("retry_at")
    assert abs(datetime.fromisoformat(retry_at).timestamp() - time.time() - 10 * SCALE) < 60
    opened = {"state": "open", "failures": 5}
    assert shown == {"echo": None, "m0": closed, "m1": opened, "m2": closed}
    assert opened.items() <= api.get("/api/v1/models/m1").json()["circuit"].items()
    assert api.get("/api/v1/models/echo").json()["circuit"] is None


def test_metrics_show_which_are_open(api: APIClient, scaled: None) -> None:
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
        self.open_until: float | None = None
        self.open_seconds = 0.0
        self.tried_at = float("-inf")
        # Counted failures since the last success, of calls that began after the last change.
        self.streak = 0
        self.changes = 0

    @rule(seconds=st.sampled_from([0.5, 1, 4, 9.5, 10, 25, 100, 299.5, 300]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        pass_time(seconds)

    @rule(target=calls)
    def begin(self) -> Any:
        attempt = CircuitBreaker(self.model)
        is_free = self.open_until is None or (
            self.now >= self.open_until and self.now >= self.tried_at + 10
        )
        if not is_free:
            with pytest.raises(InferenceError) as caught:
                attempt.before_call()
            assert caught.value.retry_after is not None
            assert 0 < caught.value.retry_after <= MAX_OPEN_SECONDS * SCALE
            return multiple()
        attempt.before_call()
        if self.open_until is not None:
            self.tried_at = self.now
        return (attempt, self.changes)

    @rule(call=consumes(calls))
    def succeed(self, call: tuple[CircuitBreaker, int]) -> None:
        attempt, began_at = call
        attempt.on_success()
        if self.open_until is None:
            self.changes += self.streak > 0
            self.streak = 0
        elif began_at == self.changes:
            self.open_until, self.streak, self.open_seconds = None, 0, 0.0
            self.changes += 1

    @rule(call=consumes(calls), failure=st.sampled_from([DOWN, SLOW]))
    def fail(self, call: tuple[CircuitBreaker, int], failure: InferenceError) -> None:
        attempt, began_at = call
        attempt.on_failure(failure)
        if began_at != self.changes:
            return
        self.streak += 1
        if self.open_until is not None or self.streak >= 2:
            self.open_seconds = min(2 * self.open_seconds, 300) or 10
            self.open_until = self.now + self.open_seconds
            self.tried_at = float("-inf")
            self.changes += 1

    @rule(call=consumes(calls), failure=st.sampled_from([BUSY, BAD_REQUEST, KEY_REFUSED]))
    def fail_otherwise(self, call: tuple[CircuitBreaker, int], failure: InferenceError) -> None:
        attempt, began_at = call
        attempt.on_failure(failure)
        if self.open_until is not None and began_at == self.changes:
            self.tried_at = float("-inf")

    @rule(call=consumes(calls))
    def get_lost(self, call: tuple[CircuitBreaker, int]) -> None:
        """Its worker has died, or the task was cancelled."""

    @precondition(lambda self: self.open_until is not None)
    @rule()
    def wait_until_it_may_be_tried(self) -> None:
        assert self.open_until is not None
        self.wait(max(0.0, self.open_until - self.now, self.tried_at + 10 - self.now))

    @invariant()
    def shows_what_happened(self) -> None:
        shown = state_of(self.model)
        assert shown.failures == self.streak
        if self.open_until is None:
            assert shown.state == State.CLOSED
        else:
            assert shown.state == (State.OPEN if self.now < self.open_until else State.HALF_OPEN)


@pytest.mark.usefixtures("scaled")
def test_circuit_does_right_whatever_calls_do(settings: Settings) -> None:
    settings.CIRCUIT_FAILURES = 2
    run_state_machine_as_test(
        CircuitMachine,
        settings=hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None),
    )
