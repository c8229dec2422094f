"""Models that crash their worker: counted, and refused the second time."""

import pytest
from billiard.common import human_status
from rest_framework.test import APIClient

from inference.lifecycle import claim, sweep
from inference.loading import crashes, requests
from inference.models import GenerationTask, RegisteredModel
from monitoring.hardware import worker_identity
from tests.inference.api.test_tasks import assert_error
from tests.inference.lifecycle.test_lifecycle import NewTask

SIGSEGV = f"Worker exited prematurely: {human_status(-11)} Job: 3."


@pytest.fixture
def model(db: None) -> RegisteredModel:
    return RegisteredModel.objects.create(name="weights", provider="local")


def num_crashes(model: RegisteredModel) -> int:
    return RegisteredModel.objects.get(pk=model.pk).num_crashes


def load_on(worker: str, model: RegisteredModel) -> None:
    model.set_status(RegisteredModel.Status.LOADING, worker)


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
    assert crashes.count(dead_worker, reason) == is_crash
    assert num_crashes(model) == int(is_crash)


def test_crash_is_counted_though_a_sweep_has_released_the_model(
    model: RegisteredModel, dead_worker: str, new_task: NewTask
) -> None:
    task = new_task(model="weights")
    assert claim.claim(task.pk)
    GenerationTask.objects.update(worker=dead_worker)
    load_on(dead_worker, model)
    sweep.sweep()
    requests.sweep()
    assert RegisteredModel.objects.get(pk=model.pk).status == "available"
    assert crashes.count(dead_worker, SIGSEGV)
    assert num_crashes(model) == 1


def test_crash_of_another_worker_is_not_counted(model: RegisteredModel, dead_worker: str) -> None:
    load_on(worker_identity.current(), model)
    assert not crashes.count(dead_worker, SIGSEGV)
    assert num_crashes(model) == 0


def test_crash_after_loading_is_not_counted(
    model: RegisteredModel, dead_worker: str, new_task: NewTask
) -> None:
    model.set_status(RegisteredModel.Status.LOADED, dead_worker)
    assert claim.claim(new_task(model="weights").pk)
    GenerationTask.objects.update(worker=dead_worker)
    assert not crashes.count(dead_worker, SIGSEGV)
    assert num_crashes(model) == 0


def test_second_crash_is_the_last(api: APIClient, model: RegisteredModel, dead_worker: str) -> None:
    body = {"model": "weights", "prompt": "hello"}
    load_on(dead_worker, model)
    crashes.count(dead_worker, SIGSEGV)
    requests.sweep()
    assert api.post("/api/v1/tasks", body, format="json").status_code == 201
    load_on(dead_worker, model)
    crashes.count(dead_worker, SIGSEGV)
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
