"""Urgent tasks: who is paused for them, and what becomes of those."""

import time

import pytest
from django.conf import LazySettings

from inference.errors import ErrorCode, InferenceError
from inference.execution import gpu_session
from inference.lifecycle import finish, sweep
from inference.loading import device_memory
from inference.loading.loaded_engines import loaded_engines
from inference.models import GenerationTask, RegisteredModel
from monitoring.redis.client import client
from monitoring.streams.delta_stream import stream_key
from tests.conftest import wait_until_enqueued
from tests.inference.execution.test_gpu_session import (
    Died,
    FakeEngines,
    NewTask,
    in_order_of_start,
    loaded,
    submit,
    text,
)
from tests.inference.lifecycle.test_lifecycle import expire, fresh, outcomes

__all__ = ["loaded", "submit"]
pytestmark = pytest.mark.django_db(transaction=True)

LONG = 100


@pytest.fixture(autouse=True)
def preempt(settings: LazySettings) -> None:
    settings.PREEMPT_PRIORITY = 50.0


@pytest.fixture
def max_num_seqs() -> int:
    return 2


class Meanwhile:
    """Submits tasks at a step of the engines."""

    def __init__(self, loaded: FakeEngines, submit: NewTask) -> None:
        self._loaded, self._submit = loaded, submit
        self.tasks: list[GenerationTask] = []

    def submit(self, step: int, model: str = "a", priority: float = 90, **fields: object) -> None:
        def make() -> None:
            self.tasks.append(self._submit(model, priority=priority, **fields))
            wait_until_enqueued()

        self._loaded.at_step[step] = make


@pytest.fixture
def meanwhile(loaded: FakeEngines, submit: NewTask) -> Meanwhile:
    return Meanwhile(loaded, submit)


def num_computed(loaded: FakeEngines) -> int:
    return sum(runner.num_computed_tokens for runner in loaded.runners.values())


def num_needed(*tasks: GenerationTask) -> int:
    """Tokens to compute: of an answer, all but the last."""
    usages = [fresh(task).usage for task in tasks]
    return sum(
        usage["prompt_tokens"] - usage["cached_tokens"] + usage["completion_tokens"] - 1
        for usage in usages
    )


def assert_nothing_is_left(loaded: FakeEngines) -> None:
    for runner in loaded.runners.values():
        assert (runner.samplers, runner.detached) == (set(), set())
    assert [engine.num_unfinished for engine in loaded.engines.values()] == [0, 0]


@pytest.mark.parametrize("model", ["a", "b"])
def test_urgent_task_runs_at_once_and_the_others_go_on(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile, model: str
) -> None:
    running = [submit(max_tokens=LONG), submit(max_tokens=LONG)]
    meanwhile.submit(20, model)
    gpu_session.run(running[0].pk)
    [urgent] = meanwhile.tasks
    ends = [fresh(task).finished_at for task in (urgent, *running)]
    assert min(ends) == ends[0]  # type: ignore[type-var]
    assert [text(task) for task in running] == ["x" * LONG] * 2
    assert [outcomes(task) for task in running] == [["completed"]] * 2
    assert num_computed(loaded) == num_needed(urgent, *running)
    assert [client().xlen(stream_key(task.pk)) for task in running] == [LONG] * 2
    assert_nothing_is_left(loaded)


def test_nothing_is_paused_unless_the_setting_says_so(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile, settings: LazySettings
) -> None:
    settings.PREEMPT_PRIORITY = None
    running = [submit(max_tokens=LONG), submit(max_tokens=LONG)]
    meanwhile.submit(20)
    gpu_session.run(running[0].pk)
    ends = [fresh(task).finished_at for task in (*meanwhile.tasks, *running)]
    assert max(ends) == ends[0]  # type: ignore[type-var]


def test_less_urgent_tasks_wait_until_the_paused_have_ended(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile
) -> None:
    running = [submit(max_tokens=LONG), submit(max_tokens=LONG)]
    meanwhile.submit(20, "b")
    meanwhile.submit(22, "b", priority=49)
    meanwhile.submit(24, "a", priority=49)
    gpu_session.run(running[0].pk)
    _urgent, other, own = meanwhile.tasks
    assert fresh(other).status == "pending"
    assert (fresh(own).started_at or 0) >= min(  # type: ignore[operator]
        task.finished_at for task in map(fresh, running) if task.finished_at
    )


def test_least_urgent_and_then_the_latest_is_paused(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile
) -> None:
    first = submit(max_tokens=LONG, priority=2)
    later = [submit(max_tokens=LONG, priority=2)]
    meanwhile.submit(20, max_tokens=60)
    gpu_session.run(first.pk)
    assert (fresh(first).finished_at or 0) < (fresh(later[0]).finished_at or 0)  # type: ignore[operator]


def test_urgent_tasks_are_never_paused(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile
) -> None:
    running = [submit(max_tokens=LONG, priority=60), submit(max_tokens=LONG, priority=60)]
    meanwhile.submit(20)
    meanwhile.submit(21, "b")
    gpu_session.run(running[0].pk)
    own, other = meanwhile.tasks
    gpu_session.run(other.pk)
    assert in_order_of_start(*running, own, other)[:2] == in_order_of_start(*running)
    for task in running:
        assert (fresh(task).finished_at or 0) < (fresh(other).started_at or 0)  # type: ignore[operator]


@pytest.mark.parametrize("model", ["a", "b"])
def test_cancel_of_a_paused_task_keeps_its_text(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile, model: str
) -> None:
    running = [submit(max_tokens=LONG), submit(max_tokens=LONG)]
    meanwhile.submit(20, model, max_tokens=60)
    seen: list[str] = []
    loaded.at_step[40] = lambda: finish.cancel(fresh(running[1]))
    loaded.at_step[60] = lambda: seen.append(fresh(running[1]).status)
    gpu_session.run(running[0].pk)
    assert seen == ["cancelled"]
    assert 15 <= len(text(running[1])) <= 25
    assert text(running[0]) == "x" * LONG
    assert_nothing_is_left(loaded)


def test_lost_lease_of_a_paused_task(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile
) -> None:
    running = [submit(max_tokens=LONG), submit(max_tokens=LONG)]
    meanwhile.submit(20, max_tokens=60)

    def lose() -> None:
        expire(running[1])
        sweep.sweep()

    loaded.at_step[40] = lose
    gpu_session.run(running[0].pk)
    assert fresh(running[1]).status == "pending"
    assert_nothing_is_left(loaded)


def test_time_while_paused_is_no_running_time(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = [submit(max_tokens=LONG, timeout_seconds=50) for _ in range(2)]
    meanwhile.submit(20, "b", max_tokens=60)
    clock = time.monotonic
    ahead = [0.0]

    def pass_time(seconds: float) -> None:
        ahead[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock() + ahead[0])
    loaded.at_step[40] = lambda: pass_time(100)
    gpu_session.run(running[0].pk)
    assert [fresh(task).status for task in running] == ["completed"] * 2


def test_crash_while_tasks_are_paused_is_as_any_other(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile, dead_worker: str
) -> None:
    running = [submit(max_tokens=LONG), submit(max_tokens=LONG)]
    meanwhile.submit(20, "b", max_tokens=60)

    def die() -> None:
        raise Died

    loaded.at_step[40] = die
    with pytest.raises(Died):
        gpu_session.run(running[0].pk)
    tasks = [*running, *meanwhile.tasks]
    GenerationTask.objects.filter(status="processing").update(worker=f"{dead_worker}.1:")
    sweep.take_back_from(f"{dead_worker}.1:", "signal 11 (SIGSEGV)")
    assert [outcomes(task) for task in tasks] == [["lost"]] * 3
    assert_nothing_is_left(loaded)
    for task in tasks:
        gpu_session.run(task.pk)
    assert [fresh(task).status for task in tasks] == ["completed"] * 3


def test_suspect_that_runs_alone_is_not_paused(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile
) -> None:
    task = submit()
    loaded.at_step[1] = lambda: (_ for _ in ()).throw(Died)
    with pytest.raises(Died):
        gpu_session.run(task.pk)
    expire(task)
    sweep.sweep()
    meanwhile.submit(loaded.num_steps + 3)
    gpu_session.run(task.pk)
    [urgent] = meanwhile.tasks
    gpu_session.run(urgent.pk)
    assert in_order_of_start(task, urgent) == [task, urgent]
    assert (fresh(task).finished_at or 0) < (fresh(urgent).started_at or 0)  # type: ignore[operator]


def test_model_that_cannot_be_loaded_again_fails_what_was_paused(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = [submit(max_tokens=LONG), submit(max_tokens=LONG)]
    meanwhile.submit(20, "b")
    load, num_loads = loaded_engines.load, [0]

    def load_or_fail(model: RegisteredModel) -> object:
        num_loads[0] += model.name == "a"
        if num_loads[0] > 2:
            raise InferenceError("no room", ErrorCode.MODEL_LOAD_FAILED)
        return load(model)

    monkeypatch.setattr(loaded_engines, "load", load_or_fail)
    gpu_session.run(running[0].pk)
    assert fresh(meanwhile.tasks[0]).status == "completed"
    assert [fresh(task).error_code for task in running] == ["model_load_failed"] * 2
    assert 15 <= len(text(running[0])) <= 25
    assert_nothing_is_left(loaded)


def test_model_registered_anew_meanwhile_does_not_go_on(
    loaded: FakeEngines, submit: NewTask, meanwhile: Meanwhile
) -> None:
    running = [submit(max_tokens=LONG), submit(max_tokens=LONG)]
    meanwhile.submit(20, "b")
    loaded.at_step[25] = lambda: RegisteredModel.objects.filter(name="a").update(
        config={"other": 1}
    )
    gpu_session.run(running[0].pk)
    assert [fresh(task).error_code for task in running] == ["model_load_failed"] * 2
    assert_nothing_is_left(loaded)


@pytest.mark.parametrize("model", ["a", "b"])
def test_without_ram_for_what_they_have_computed_nothing_is_paused(
    loaded: FakeEngines,
    submit: NewTask,
    meanwhile: Meanwhile,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
) -> None:
    none_left = device_memory.DeviceMemory(device_memory.MemoryKind.RAM, 1, 0, 0)
    monkeypatch.setattr(device_memory, "read", lambda gpu_layers: none_left)
    running = [submit(max_tokens=LONG), submit(max_tokens=LONG + 20)]
    meanwhile.submit(20, model)
    gpu_session.run(running[0].pk)
    [urgent] = meanwhile.tasks
    gpu_session.run(urgent.pk)
    assert fresh(urgent).status == "completed"
    assert (fresh(urgent).finished_at or 0) > (fresh(running[0]).finished_at or 0)  # type: ignore[operator]
    assert [text(task) for task in running] == ["x" * LONG, "x" * (LONG + 20)]
