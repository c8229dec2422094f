"""GPU sessions: who runs with whom, who waits, and what is left when something breaks."""

import faulthandler
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from django.conf import LazySettings, settings
from django.db import OperationalError, connection

from inference.engine.chat_template import ChatTemplate
from inference.engine.engine import Engine
from inference.execution import gpu_session
from inference.lifecycle import claim, finish, lease_renewer, sweep
from inference.loading.loaded_engines import loaded_engines
from inference.models import GenerationTask, RegisteredModel
from monitoring.redis.client import client
from monitoring.streams.delta_stream import stream_key
from tests.conftest import Valkey, wait_until, wait_until_enqueued
from tests.inference.engine.fake_runner import FakeRunner
from tests.inference.lifecycle.test_lifecycle import expire, fresh, outcomes

NewTask = Callable[..., GenerationTask]
# Committed rows, which the lease renewer's thread reads too.
pytestmark = pytest.mark.django_db(transaction=True)


PROVENANCE: dict[str, Any] = {
    "file": {"path": "a.gguf", "size_bytes": 1, "modified_ns": 1},
    "llama_cpp": "fake",
    "llama_cpp_system": "",
    "chat_template_sha256": None,
    "loaded": {},
}
HUGE, BROKEN = "huge", "broken"


class TemplatedRunner(FakeRunner):
    """The prompt HUGE is made once `may_finish` is set, BROKEN never."""

    chat_template = ChatTemplate(None)

    def __init__(self, **sizes: Any) -> None:
        super().__init__(fails=lambda num_decodes: num_decodes > self.num_good_decodes, **sizes)
        self.num_good_decodes = math.inf
        self.has_begun, self.may_finish = threading.Event(), threading.Event()

    def tokenize(self, text: str) -> list[int]:
        if text == HUGE:
            self.has_begun.set()
            assert self.may_finish.wait(20), "nothing goes on while a prompt is made"
        if text == BROKEN:
            raise MemoryError("no more")
        return super().tokenize(text)


class FakeEngines:
    """Two models without weights, `a` and `b`, whose answers go on until max_tokens."""

    def __init__(self, max_num_seqs: int) -> None:
        self.runners: dict[str, TemplatedRunner] = {}
        self.engines = {name: self._engine(name, max_num_seqs) for name in ("a", "b")}
        self.num_steps = 0
        self.at_step: dict[int, Callable[[], object]] = {}
        self.step_seconds: list[float] = []
        self.joules: float | None = None

    def _engine(self, name: str, max_num_seqs: int) -> Engine:
        runner = self.runners[name] = TemplatedRunner(
            max_num_seqs=max_num_seqs,
            n_ctx_per_seq=256,
            max_batch_tokens=64,
            next_token=lambda tokens: ord("x"),
        )
        engine = Engine(runner)
        step = engine.step

        def counted_step() -> Any:
            self.num_steps += 1
            self.at_step.pop(self.num_steps, lambda: None)()
            started = time.monotonic()
            outputs = step()
            self.step_seconds.append(time.monotonic() - started)
            return outputs

        engine.step = counted_step  # type: ignore[method-assign]
        return engine

    def read_joules(self) -> float | None:
        """Ten more for each step."""
        return None if self.joules is None else self.joules + 10 * self.num_steps

    def load(self, model: RegisteredModel) -> Any:
        engine = self.engines[model.name]

        class Loaded:
            runner = engine.runner
            loaded_at = 0.0
            provenance: ClassVar[dict[str, Any]] = PROVENANCE
            read_joules = staticmethod(self.read_joules)

        Loaded.engine, Loaded.model = engine, model  # type: ignore[attr-defined]
        return Loaded

    @contextmanager
    def in_use(self, loaded: Any) -> Iterator[None]:
        yield


@pytest.fixture
def max_num_seqs() -> int:
    return 4


@pytest.fixture
def loaded(db: None, monkeypatch: pytest.MonkeyPatch, max_num_seqs: int) -> FakeEngines:
    for name in ("a", "b"):
        RegisteredModel.objects.create(name=name, provider="local")
    made = FakeEngines(max_num_seqs)
    monkeypatch.setattr(loaded_engines, "load", made.load)
    monkeypatch.setattr(loaded_engines, "in_use", made.in_use)
    monkeypatch.setattr(loaded_engines, "serve_requests", lambda: None)
    monkeypatch.setattr(gpu_session, "_EXCHANGE_SECONDS", 0.0)  # these engines take no time
    return made


@pytest.fixture
def submit(new_task: NewTask) -> NewTask:
    def make(model: str = "a", **fields: object) -> GenerationTask:
        return new_task(model=model, temperature=0, **{"max_tokens": 8, **fields})

    return make


def text(task: GenerationTask) -> str:
    result = fresh(task).result
    assert result is not None
    return str(result["text"])


def in_order_of_start(*tasks: GenerationTask) -> list[GenerationTask]:
    """The tasks as they were claimed: the table of attempts grows as they end, so not by it."""
    return sorted(tasks, key=lambda task: fresh(task).started_at or task.created_at)


def test_tasks_of_one_model_run_together(loaded: FakeEngines, submit: NewTask) -> None:
    tasks = [submit() for _ in range(4)]
    gpu_session.run(tasks[0].pk)
    assert [text(task) for task in tasks] == ["x" * 8] * 4
    assert [outcomes(task) for task in tasks] == [["completed"]] * 4
    assert loaded.num_steps < 2 * 8


def test_tasks_share_the_time_and_energy_of_all_steps(loaded: FakeEngines, submit: NewTask) -> None:
    loaded.joules = 7.0
    tasks = [submit(max_tokens=4 * n) for n in range(1, 5)]
    tasks.append(submit(max_tokens=100))
    loaded.at_step[30] = lambda: finish.cancel(tasks[-1])
    started = time.monotonic()
    gpu_session.run(tasks[0].pk)
    costs = [fresh(task).cost for task in tasks]
    seconds = sum(cost.gpu_seconds or 0 for cost in costs)
    assert sum(loaded.step_seconds) - 1e-4 < seconds < time.monotonic() - started
    joules = sum(cost.energy_joules or 0 for cost in costs)
    assert joules == pytest.approx(10 * loaded.num_steps, abs=0.01)
    [attempt] = tasks[0].attempts.all()
    assert attempt.cost == costs[0]
    assert fresh(tasks[-1]).status == "cancelled"


def test_each_attempt_of_a_task_costs(loaded: FakeEngines, submit: NewTask) -> None:
    loaded.runners["a"].num_good_decodes = 5
    task = submit(fallback_models=["b"])
    gpu_session.run(task.pk)
    gpu_session.run(task.pk)
    costs = [attempt.gpu_seconds or 0 for attempt in task.attempts.order_by("number")]
    assert outcomes(task) == ["failed", "completed"]
    assert all(costs)
    assert fresh(task).gpu_seconds == pytest.approx(sum(costs))
    assert fresh(task).energy_joules is None


def test_task_submitted_meanwhile_joins(loaded: FakeEngines, submit: NewTask) -> None:
    late: list[GenerationTask] = []
    first = submit(max_tokens=100)

    def submit_another() -> None:
        late.append(submit(max_tokens=4))
        wait_until_enqueued()

    loaded.at_step[3] = submit_another
    gpu_session.run(first.pk)
    assert fresh(late[0]).status == "completed"
    assert loaded.num_steps <= 101
    assert (fresh(late[0]).finished_at or 0) < (fresh(first).finished_at or 0)  # type: ignore[operator]


def test_session_waits_a_moment_for_the_next_task(
    loaded: FakeEngines, submit: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_session, "_LINGER_SECONDS", 20.0)
    loaded.at_step[9] = lambda: monkeypatch.setattr(gpu_session, "_LINGER_SECONDS", 0.0)
    first = submit()
    next_one: list[GenerationTask] = []

    def ask_again() -> None:
        wait_until(lambda: fresh(first).status == "completed")
        next_one.append(submit())
        connection.close()

    asking = threading.Thread(target=ask_again)
    asking.start()
    gpu_session.run(first.pk)
    asking.join()
    assert fresh(next_one[0]).status == "completed"


@pytest.mark.parametrize("max_num_seqs", [1])
def test_with_one_sequence_tasks_run_one_at_a_time_by_priority(
    loaded: FakeEngines, submit: NewTask
) -> None:
    low, high, middle = submit(priority=1), submit(priority=50), submit(priority=5)
    gpu_session.run(low.pk)
    assert in_order_of_start(low, high, middle) == [high, middle, low]
    assert loaded.num_steps == 3 * 8


def test_session_ends_for_a_more_urgent_task_of_another_model(
    loaded: FakeEngines, submit: NewTask
) -> None:
    later: list[GenerationTask] = []
    first = submit(max_tokens=50)

    def rivals() -> None:
        later.extend([submit("a"), submit("b", priority=50)])
        wait_until_enqueued()

    loaded.at_step[3] = rivals
    gpu_session.run(first.pk)
    own, rival = later
    assert fresh(own).status == "pending"  # its own message is still to come
    gpu_session.run(own.pk)
    assert in_order_of_start(own, rival) == [rival, own]


@pytest.mark.parametrize(("window", "follower"), [(60.0, "own"), (0.0, "rival")])
def test_equal_task_of_another_model_waits_for_the_swap_window(
    loaded: FakeEngines, submit: NewTask, settings: LazySettings, window: float, follower: str
) -> None:
    settings.SWAP_WINDOW_SECONDS = window
    first, rival, own = submit(max_tokens=50), submit("b"), submit("a")
    gpu_session.run(first.pk)
    gpu_session.run(own.pk)
    gpu_session.run(rival.pk)
    assert in_order_of_start(own, rival)[0] == {"own": own, "rival": rival}[follower]


def test_less_urgent_task_of_another_model_does_not_close_the_session(
    loaded: FakeEngines, submit: NewTask, settings: LazySettings
) -> None:
    settings.SWAP_WINDOW_SECONDS = 0.0
    rival, first, own = submit("b", priority=1), submit(priority=2), submit(priority=2)
    gpu_session.run(first.pk)
    assert fresh(own).status == "completed"
    assert fresh(rival).status == "pending"


def test_more_tasks_than_sequences_follow_each_other(loaded: FakeEngines, submit: NewTask) -> None:
    tasks = [submit() for _ in range(10)]
    gpu_session.run(tasks[0].pk)
    assert {fresh(task).status for task in tasks} == {"completed"}


def test_cancel_of_one_leaves_the_others(loaded: FakeEngines, submit: NewTask) -> None:
    first, joined = submit(max_tokens=60), submit(max_tokens=200)
    loaded.at_step[5] = lambda: finish.cancel(fresh(joined))
    gpu_session.run(first.pk)
    assert (fresh(first).status, fresh(joined).status) == ("completed", "cancelled")
    assert text(joined) == "x" * len(text(joined))
    assert 1 <= len(text(joined)) < 60


def test_lost_lease_of_one_leaves_the_others(loaded: FakeEngines, submit: NewTask) -> None:
    first, joined = submit(max_tokens=200), submit(max_tokens=200)

    def lose() -> None:
        expire(joined)
        sweep.sweep()

    loaded.at_step[5] = lose
    gpu_session.run(first.pk)
    assert fresh(first).status == "completed"
    assert fresh(joined).status == "pending"
    gpu_session.run(joined.pk)
    assert (fresh(joined).status, fresh(joined).attempt) == ("completed", 2)
    assert sorted(outcomes(joined)) == ["completed", "lost"]


def test_bad_request_fails_by_itself(loaded: FakeEngines, submit: NewTask) -> None:
    first, too_long, fine = submit(), submit(prompt="p" * 300), submit()
    gpu_session.run(first.pk)
    assert [fresh(task).status for task in (first, too_long, fine)] == [
        "completed",
        "failed",
        "completed",
    ]
    assert fresh(too_long).error_code == "context_length_exceeded"


class Died(BaseException):
    """What would have ended the process."""


def test_prompt_that_ends_the_worker_takes_no_other_with_it(
    loaded: FakeEngines, submit: NewTask, dead_worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [submit() for _ in range(8)]
    poisonous = tasks[2]
    engine = loaded.engines["a"]
    step = engine.step

    def step_or_die() -> Any:
        if fresh(poisonous).status == "processing":
            raise Died
        return step()

    monkeypatch.setattr(engine, "step", step_or_die)
    num_deaths = 0
    while pending := list(GenerationTask.objects.due().most_urgent_first()):
        try:
            gpu_session.run(pending[0].pk)
        except Died:
            num_deaths += 1
            worker = f"{dead_worker}.{num_deaths}:"
            GenerationTask.objects.filter(status="processing").update(worker=worker)
            sweep.take_back_from(worker, "signal 11 (SIGSEGV)")
    assert num_deaths == 3
    assert outcomes(poisonous) == ["lost"] * 3
    assert (fresh(poisonous).status, fresh(poisonous).error_code) == ("failed", "worker_lost")
    joined, later = [*tasks[:2], tasks[3]], tasks[4:]
    assert [outcomes(task) for task in joined] == [["lost", "completed"]] * 3
    assert [outcomes(task) for task in later] == [["completed"]] * 4
    assert in_order_of_start(*joined, *later)[:3] == joined


def test_crash_while_a_prompt_is_made_fails_that_task_alone(
    loaded: FakeEngines, submit: NewTask
) -> None:
    first, broken, fine = submit(), submit(prompt=BROKEN), submit()
    gpu_session.run(first.pk)
    assert [fresh(task).status for task in (first, broken, fine)] == [
        "completed",
        "failed",
        "completed",
    ]
    assert fresh(broken).error_code == "internal_error"


def test_steps_go_on_while_a_prompt_is_made(loaded: FakeEngines, submit: NewTask) -> None:
    first, huge = submit(max_tokens=100), submit(prompt=HUGE)
    loaded.at_step[50] = loaded.runners["a"].may_finish.set
    gpu_session.run(first.pk)
    assert (text(first), text(huge)) == ("x" * 100, "x" * 8)


def test_most_urgent_task_is_next_when_a_prompt_is_made(
    loaded: FakeEngines, submit: NewTask
) -> None:
    first, huge = submit(max_tokens=100), submit(prompt=HUGE)
    later: list[GenerationTask] = []

    def submit_others() -> None:
        later.extend([submit(), submit(priority=50)])
        wait_until_enqueued()

    loaded.at_step[20] = submit_others
    loaded.at_step[50] = loaded.runners["a"].may_finish.set
    gpu_session.run(first.pk)
    low, high = later
    assert in_order_of_start(first, huge, low, high) == [first, huge, high, low]


def test_cancel_is_heard_while_a_prompt_is_made(loaded: FakeEngines, submit: NewTask) -> None:
    first, huge = submit(max_tokens=100), submit(prompt=HUGE)
    seen: list[str] = []
    loaded.at_step[20] = lambda: finish.cancel(fresh(huge))
    loaded.at_step[50] = lambda: seen.append(fresh(huge).status)
    loaded.at_step[51] = loaded.runners["a"].may_finish.set
    gpu_session.run(first.pk)
    assert seen == ["cancelled"]
    assert text(first) == "x" * 100
    assert not loaded.runners["a"].samplers


def test_session_ends_after_the_prompt_that_is_made(loaded: FakeEngines, submit: NewTask) -> None:
    huge, runner = submit(prompt=HUGE), loaded.runners["a"]

    def cancel() -> None:
        runner.has_begun.wait(20)
        finish.cancel(fresh(huge))
        wait_until(lambda: fresh(huge).finished_at is not None)
        runner.may_finish.set()
        connection.close()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    gpu_session.run(huge.pk)
    canceller.join()
    assert runner.may_finish.is_set()
    assert (outcomes(huge), runner.samplers) == (["cancelled"], set())


def test_broken_engine_leaves_nothing_behind(loaded: FakeEngines, submit: NewTask) -> None:
    tasks = [submit(), submit()]

    def fail() -> None:
        raise MemoryError("no more")

    loaded.at_step[3] = fail
    with pytest.raises(MemoryError):
        gpu_session.run(tasks[0].pk)
    assert not loaded.engines["a"].num_unfinished
    for task in tasks:
        expire(task)
    sweep.sweep()
    for task in tasks:
        gpu_session.run(task.pk)
    assert [text(task) for task in tasks] == ["x" * 8] * 2


def test_database_away_stops_admission_alone(
    loaded: FakeEngines, submit: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("gone")

    first, other = submit(), submit()
    with monkeypatch.context() as broken:
        broken.setattr(claim, "claim_joining", fail)
        gpu_session.run(first.pk)
    assert (fresh(first).status, fresh(other).status) == ("completed", "pending")


def test_worker_that_stops_starts_nothing_new(
    loaded: FakeEngines, submit: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = submit(), submit()
    loaded.at_step[1] = gpu_session.drain
    try:
        gpu_session.run(first.pk)
        gpu_session.run(other.pk)
    finally:
        gpu_session._draining.clear()
    assert fresh(first).status == "completed"
    assert fresh(other).status == "pending"


def test_model_to_be_loaded_ends_admission(loaded: FakeEngines, submit: NewTask) -> None:
    first, other = submit(), submit()
    RegisteredModel.objects.filter(name="b").update(requested="load")
    gpu_session.run(first.pk)
    assert (fresh(first).status, fresh(other).status) == ("completed", "pending")


def test_session_does_without_redis(loaded: FakeEngines, submit: NewTask, valkey: Valkey) -> None:
    first, joined = submit(max_tokens=100), submit(max_tokens=200)

    def cancel() -> None:
        valkey.stop()
        finish.cancel(fresh(joined))
        lease = lease_renewer._held[(GenerationTask, joined.pk, 1)]
        wait_until(lambda: lease.cancel_requested)

    loaded.at_step[3] = cancel
    gpu_session.run(first.pk)
    assert (fresh(first).status, fresh(joined).status) == ("completed", "cancelled")


def test_step_that_never_returns_ends_the_process() -> None:
    program = """
import time, django
django.setup()
from django.conf import settings
from inference.execution.gpu_session import _Watchdog
settings.STEP_TIMEOUT_SECONDS = 0.1
_Watchdog().feed()
def hanging_step():
    time.sleep(60)
hanging_step()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.returncode == 1
    assert "hanging_step" in ended.stderr


def test_watchdog_is_fed_before_the_prompt_is_made_and_for_the_load(
    loaded: FakeEngines, submit: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def note(limit: float, **_: object) -> None:
        limits.append(limit)

    monkeypatch.setattr(faulthandler, "dump_traceback_later", note)
    gpu_session.run(submit(max_tokens=2).pk)
    step, load = settings.STEP_TIMEOUT_SECONDS + 1, 10 * settings.STEP_TIMEOUT_SECONDS + 1
    assert limits == [step, load, step]


def test_first_delta_of_an_answer_goes_out_at_once(
    loaded: FakeEngines, submit: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_session, "_EXCHANGE_SECONDS", float("inf"))
    task = submit()
    seen: list[int] = []

    def look() -> None:
        seen.append(client().xlen(stream_key(task.pk)))

    loaded.at_step |= dict.fromkeys((3, 5, 7), look)
    gpu_session.run(task.pk)
    assert seen == [1, 1, 1]
    _, (_, rest) = client().xrange(stream_key(task.pk))  # at the end all is there
    assert rest["index"] == "1"
    assert len(rest["text"]) == 7
