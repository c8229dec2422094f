"""Models that crash their worker: counted, and refused the second time."""

import pytest
from billiard.common import human_status
from rest_framework.test import APIClient

from inference.lifecycle import claim, sweep
from inference.loading import crashes, requests
from inference.models import GenerationTask, RegisteredModel
from tests.inference.api.test_tasks import assert_error
from tests.inference.lifecycle.test_lifecycle import NewTask

SIGSEGV = f"Worker exited prematurely: {human_status(-11)} Job: 3."


@pytest.fixture
def model(db: None) -> RegisteredModel:
    return RegisteredModel.objects.create(name="weights", provider="local")


def num_crashes(model: RegisteredModel) -> int:
    return RegisteredModel.objects.get(pk=model.pk).num_crashes


def pid_of(worker: str) -> int:
    return int(worker.split(":")[1])


def load_on(worker: str, model: RegisteredModel) -> None:
    model.set_status(RegisteredModel.Status.LOADING, worker)


def run_on(worker: str, task: GenerationTask) -> None:
    assert claim.claim(task.pk)
    GenerationTask.objects.filter(pk=task.pk).update(worker=worker)


@pytest.mark.parametrize(
    ("status", "is_crash"),
    [
        *((-11, True), (-6, True), (-7, True), (-8, True), (-4, True)),
        *((-9, False), (-15, False), (1, False), (11, False)),
    ],
)
def test_what_native_code_dies_of_is_a_crash(
    model: RegisteredModel, dead_worker: str, status: int, is_crash: bool
) -> None:
    load_on(dead_worker, model)
    reason = f"Worker exited prematurely: {human_status(status)} Job: 3."
    crashes.count(pid_of(dead_worker), reason)
    assert num_crashes(model) == int(is_crash)


@pytest.mark.parametrize("is_swept", [False, True])
def test_crash_while_running_is_counted_once(
    model: RegisteredModel, dead_worker: str, new_task: NewTask, is_swept: bool
) -> None:
    for _ in range(3):
        run_on(dead_worker, new_task(model="weights"))
    if is_swept:
        sweep.sweep()
    crashes.count(pid_of(dead_worker), SIGSEGV)
    assert num_crashes(model) == 1


def test_crash_of_another_worker_is_not_counted(
    model: RegisteredModel, dead_worker: str, new_task: NewTask
) -> None:
    idle = RegisteredModel.objects.create(name="idle", provider="local")
    idle.set_status(RegisteredModel.Status.LOADED, dead_worker)
    assert claim.claim(new_task(model="weights").pk)  # this process lives
    run_on(dead_worker, new_task(model="echo"))
    crashes.count(pid_of(dead_worker), SIGSEGV)
    assert (num_crashes(model), num_crashes(idle)) == (0, 0)
    assert not RegisteredModel.objects.exclude(num_crashes=0).exists()


def test_second_crash_is_the_last(api: APIClient, model: RegisteredModel, dead_worker: str) -> None:
    body = {"model": "weights", "prompt": "hello"}
    load_on(dead_worker, model)
    crashes.count(pid_of(dead_worker), SIGSEGV)
    requests.sweep()
    assert api.post("/api/v1/tasks", body, format="json").status_code == 201
    load_on(dead_worker, model)
    crashes.count(pid_of(dead_worker), SIGSEGV)
    requests.sweep()
    model.refresh_from_db()
    assert (model.status, model.loaded_by) == ("error", "")
    assert "register it anew" in model.status_message
    refused = api.post("/api/v1/tasks", body, format="json")
    assert_error(refused, 400, "validation_error", "model")
    assert "gpu_layers" in refused.json()["message"]
    refused = api.post("/api/v1/models/load", {"model": "weights"}, format="json")
    assert_error(refused, 400, "validation_error", "model")


def test_model_registered_anew_has_crashed_never(model: RegisteredModel) -> None:
    model.delete()
    assert num_crashes(RegisteredModel.objects.create(name="weights", provider="local")) == 0
