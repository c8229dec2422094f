"""Tasks go where their model is in memory, but do not wait longer for it than for a load."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone

from inference import dispatch
from inference.dispatch import QueueMessage
from inference.execution import gpu_session, placement
from inference.models import GenerationTask, RegisteredModel
from monitoring.hardware import worker_identity
from tests.conftest import Valkey
from tests.inference.execution.test_gpu_session import FakeEngines, loaded, submit
from tests.inference.lifecycle.test_lifecycle import fresh

__all__ = ["loaded", "submit"]  # fixtures

pytestmark = pytest.mark.django_db(transaction=True)
NewTask = Callable[..., GenerationTask]

ELSEWHERE = "another-host:1:1"


@pytest.fixture
def max_num_seqs() -> int:
    return 4


def held(name: str, by: str, size_bytes: int = 0) -> None:
    RegisteredModel.objects.filter(name=name).update(
        status=RegisteredModel.Status.LOADED, loaded_by=by, size_bytes=size_bytes
    )


def waiting_for(task: GenerationTask, seconds: float) -> None:
    created_at = timezone.now() - timedelta(seconds=seconds)
    GenerationTask.objects.filter(pk=task.pk).update(created_at=created_at)


@pytest.mark.parametrize(
    ("by", "own", "size_bytes", "waited", "is_left"),
    [
        (ELSEWHERE, [], 0, 1.0, True),
        (ELSEWHERE, [], 0, 2.5, False),
        (ELSEWHERE, [], 10**9, 2.5, True),
        (ELSEWHERE, [], 10**9, 3.5, False),
        (ELSEWHERE, ["a"], 0, 1.0, False),
    ],
)
def test_task_is_left_for_as_long_as_a_load_takes(
    loaded: FakeEngines,
    submit: NewTask,
    by: str,
    own: list[str],
    size_bytes: int,
    waited: float,
    is_left: bool,
) -> None:
    held("a", by, size_bytes)
    waiting_for(submit(), waited)
    assert placement.left_to_others(own) == (["a"] if is_left else [])


def test_model_that_this_worker_is_known_to_hold_is_not_left(
    loaded: FakeEngines, submit: NewTask
) -> None:
    held("a", worker_identity.current())
    submit()
    assert placement.left_to_others([]) == []


def test_task_of_another_workers_model_is_passed_on_and_others_run_meanwhile(
    valkey: Valkey, loaded: FakeEngines, submit: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    held("a", ELSEWHERE)
    left, own = submit(priority=90), submit("b")

    def take_elsewhere(messages: list[QueueMessage]) -> bool:
        assert [message.task_id for message in messages] == [left.pk]
        assert fresh(own).status == "completed"
        GenerationTask.objects.filter(pk=left.pk).update(status="processing")
        return True

    monkeypatch.setattr(dispatch, "enqueue", take_elsewhere)
    gpu_session.run(left.pk)
    assert (fresh(left).status, fresh(left).attempt) == ("processing", 0)


def test_task_that_nobody_takes_runs_here(
    loaded: FakeEngines, submit: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    held("a", ELSEWHERE)
    task = submit()
    monkeypatch.setattr(dispatch, "enqueue", lambda messages: waiting_for(task, 3.0))
    gpu_session.run(task.pk)
    assert fresh(task).status == "completed"
