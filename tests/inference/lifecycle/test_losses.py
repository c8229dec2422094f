"""Tasks whose worker is lost: who is to blame, who runs alone next, and who fails."""

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from billiard.common import human_status
from django.utils import timezone

from inference.lifecycle import claim, finish, sweep
from inference.models import GenerationTask, Queue, RegisteredModel
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, fresh, outcomes

NewTask = Callable[..., GenerationTask]
SIGSEGV = f"Worker exited prematurely: {human_status(-11)} Job: 3."
SIGKILL = f"Worker exited prematurely: {human_status(-9)} Job: 3."
SIGTERM = f"Worker exited prematurely: {human_status(-15)} Job: 3."
HUNG = f"Worker exited prematurely: {human_status(1)} Job: 3."


@pytest.fixture
def submit(new_task: NewTask, db: None) -> NewTask:
    RegisteredModel.objects.create(name="weights", provider="local")
    return lambda **fields: new_task(model="weights", **fields)


@pytest.fixture
def dead_workers(dead_worker: str) -> Iterator[str]:
    """One dead process after the other."""
    return (f"{dead_worker}.{number}:" for number in count())


@pytest.fixture
def crash(dead_workers: Iterator[str]) -> Callable[..., None]:
    """A pool child that runs these tasks dies, and its main process sees that."""

    def run_and_die(
        *tasks: GenerationTask, reason: str = SIGSEGV, is_sweep_faster: bool = False
    ) -> None:
        worker = next(dead_workers)
        run(worker, *tasks)
        if is_sweep_faster:
            sweep.sweep()
        sweep.take_back_from(worker, reason)

    return run_and_die


@pytest.fixture
def restart(dead_workers: Iterator[str]) -> Callable[..., None]:
    """A worker that runs these tasks ends as a whole; the next one takes them back."""

    def run_and_die(*tasks: GenerationTask) -> None:
        run(next(dead_workers), *tasks)
        sweep.sweep()

    return run_and_die


def run(worker: str, *tasks: GenerationTask) -> None:
    for task in tasks:
        assert claim.claim(task.pk)
        GenerationTask.objects.filter(pk=task.pk).update(worker=worker)


def claim_joining() -> claim.Lease | None:
    return claim.claim_joining(Queue.GPU, "weights", timezone.now())


@pytest.mark.parametrize("is_sweep_faster", [False, True])
@pytest.mark.parametrize("reason", [SIGSEGV, SIGKILL, HUNG])
def test_task_that_ends_its_worker_twice_alone_fails(
    submit: NewTask, crash: Callable[..., None], reason: str, is_sweep_faster: bool
) -> None:
    task = submit()
    crash(task, reason=reason, is_sweep_faster=is_sweep_faster)
    assert fresh(task).status == "pending"
    crash(task, reason=reason, is_sweep_faster=is_sweep_faster)
    row = fresh(task)
    assert (row.status, row.error_code) == ("failed", "worker_lost")
    assert "prompt has ended the worker 2 times" in str(row.error)
    assert row.started_at is not None
    attempts = list(task.attempts.values_list("outcome", "error_code"))
    assert attempts == [("lost", "worker_lost")] * 2
    assert all(reason in str(attempt.error) for attempt in task.attempts.all())
    assert RegisteredModel.objects.get(name="weights").status == "available"


def test_loading_that_ends_the_worker_is_not_laid_on_the_prompt(
    submit: NewTask, dead_workers: Iterator[str]
) -> None:
    task, weights = submit(), RegisteredModel.objects.get(name="weights")
    for _ in range(2):
        worker = next(dead_workers)
        run(worker, task)
        weights.set_status(RegisteredModel.Status.LOADING, worker)
        sweep.take_back_from(worker, SIGKILL)
    assert (fresh(task).status, fresh(task).error_code) == ("failed", "worker_lost")
    assert str(fresh(task).error).startswith("Loading its model has ended the worker 2 times")


def test_loss_in_company_is_nobodys_own_doing(submit: NewTask, crash: Callable[..., None]) -> None:
    tasks = [submit() for _ in range(3)]
    for _ in range(5):
        crash(*tasks)
    assert [fresh(task).status for task in tasks] == ["pending"] * 3
    crash(tasks[0])
    assert fresh(tasks[0]).status == "pending"
    crash(tasks[0])
    assert [fresh(task).status for task in tasks] == ["failed", "pending", "pending"]


def test_restarts_are_nobodys_own_doing(
    submit: NewTask, restart: Callable[..., None], crash: Callable[..., None]
) -> None:
    task = submit()
    for _ in range(5):
        restart(task)
    for _ in range(3):
        crash(task, reason=SIGTERM)
    assert fresh(task).status == "pending"
    assert outcomes(task) == ["lost"] * 8
    assert not task.attempts.exclude(error_code=None).exists()


def test_task_that_runs_again_by_then_goes_on(
    submit: NewTask, dead_workers: Iterator[str], crash: Callable[..., None]
) -> None:
    task = submit()
    crash(task)
    worker = next(dead_workers)
    run(worker, task)
    sweep.sweep()
    lease = claim.claim(task.pk)
    assert lease is not None
    sweep.take_back_from(worker, SIGSEGV)
    assert finish.complete(lease, answer(), TIMINGS)


def test_tasks_of_other_workers_are_left_alone(submit: NewTask, crash: Callable[..., None]) -> None:
    other = submit()
    assert claim.claim(other.pk)
    crash(submit())
    assert fresh(other).status == "processing"


def test_cancelled_task_that_ends_its_worker_is_cancelled(
    submit: NewTask, dead_workers: Iterator[str], crash: Callable[..., None]
) -> None:
    task = submit()
    crash(task)
    worker = next(dead_workers)
    run(worker, task)
    finish.cancel(task)
    sweep.take_back_from(worker, SIGSEGV)
    assert fresh(task).status == "cancelled"


def test_fallback_is_asked_when_the_prompt_ends_the_worker_twice(
    submit: NewTask, echo: RegisteredModel, crash: Callable[..., None]
) -> None:
    task = submit(fallback_models=["echo"])
    crash(task)
    crash(task)
    assert (fresh(task).status, fresh(task).model_name) == ("pending", "echo")


def test_lost_task_joins_nobody_and_keeps_its_place(
    submit: NewTask, restart: Callable[..., None]
) -> None:
    running, suspect = submit(priority=5), submit(priority=5)
    restart(suspect)
    assert claim.claim(running.pk)
    later, urgent = submit(priority=5), submit(priority=6)
    lease = claim_joining()
    assert lease is not None
    assert lease.task == urgent
    assert claim_joining() is None
    lease = claim.claim_most_urgent(Queue.GPU)
    assert lease is not None
    assert lease.task == suspect
    assert lease.task.was_lost
    assert fresh(later).status == "pending"


def test_task_that_failed_since_its_loss_is_no_suspect(
    submit: NewTask, restart: Callable[..., None]
) -> None:
    task = submit()
    assert not task.was_lost
    restart(task)
    assert fresh(task).was_lost
    lease = claim.claim(task.pk)
    assert lease is not None
    assert lease.task.was_lost
    finish.complete(lease, answer(), TIMINGS)
    assert not fresh(task).was_lost


def test_all_of_a_lost_cloud_session_run_at_once_again(
    new_task: NewTask, restart: Callable[..., None]
) -> None:
    tasks = [new_task() for _ in range(20)]
    for _ in range(5):
        restart(*tasks)
    leases = [claim.claim_most_urgent(Queue.API) for _ in tasks]
    assert [lease and lease.task for lease in leases] == tasks
