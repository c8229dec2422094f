"""Models are loaded, unloaded, too large, or crash their worker: the service goes on."""

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks.running_service import COUNTING, SMOLLM2, RunningService, wait_for

TROUBLED = "troubled"


@pytest.fixture(autouse=True)
def _no_troubled_model(running_service: RunningService) -> Iterator[None]:
    """Whatever becomes of a test, the next one finds none."""
    yield
    http, path = running_service.http, f"/models/{TROUBLED}"
    for task in http.get("/tasks", params={"model": TROUBLED}).json()["results"]:
        http.post(f"/tasks/{task['task_id']}/cancel")
    wait_for(lambda: http.delete(path).status_code in (204, 404))


def register(service: RunningService, **config: object) -> None:
    weights = service.model(SMOLLM2)["config"]["model_path"]
    config = {"model_path": weights, "context_window": 512, **config}
    body = {"name": TROUBLED, "provider": "local", "config": config}
    service.http.post("/models/register", json=body).raise_for_status()


@pytest.fixture
def slow_weights(running_service: RunningService) -> Iterator[Path]:
    """Weights of their own, in MODELS_DIR."""
    folder = running_service.var_dir / "models"
    path = folder / "slow.gguf"
    shutil.copyfile(folder / running_service.model(SMOLLM2)["config"]["model_path"], path)
    yield path
    path.unlink()


def test_model_whose_loading_crashed_twice_is_refused_until_it_is_registered_anew(
    service: RunningService, slow_weights: Path
) -> None:
    register(service, model_path=slow_weights.name)
    running = ""
    for number, crash in ((1, signal.SIGSEGV), (2, signal.SIGABRT)):
        with faults.held_back(slow_weights):  # for each anew: nothing is held back for ever
            running = running or service.submit(**COUNTING, model=TROUBLED, max_tokens=1500)
            child = faults.worker_of_attempt(service, running, number)
            wait_for(partial(faults.waits_for_file, child))
            faults.kill(child, crash)
    task = service.ended(running)
    assert (task["status"], task["error_code"]) == ("failed", "model_load_failed")
    assert "crashed its worker 2 times" in task["error"]
    assert (service.model(TROUBLED)["status"], task["attempt"]) == ("error", 3)

    refused = service.http.post("/tasks", json={"model": TROUBLED, "prompt": "hello"})
    assert refused.status_code == 400
    assert "model" in refused.json()["details"]
    assert service.ended(service.submit("hello", max_tokens=2))["status"] == "completed"

    service.http.delete(f"/models/{TROUBLED}").raise_for_status()
    register(service)
    answered = service.ended(service.submit("hello", TROUBLED, max_tokens=2))
    assert answered["status"] == "completed"


def test_load_and_unload_answer_when_they_are_done(service: RunningService) -> None:
    for what, status in (("load", "loaded"), ("unload", "available"), ("load", "loaded")):
        answer = service.http.post(f"/models/{what}?wait=30", json={"model": SMOLLM2})
        assert (answer.status_code, answer.json()["status"]) == (202, status)
        assert answer.json()["requested"] is None


def test_idle_model_is_unloaded_by_itself(service: RunningService) -> None:
    register(service, keep_alive_seconds=0)
    assert service.ended(service.submit("hello", TROUBLED, max_tokens=2))["status"] == "completed"
    wait_for(lambda: service.model(TROUBLED)["status"] == "available")


def test_unload_is_served_when_the_tasks_have_ended(service: RunningService) -> None:
    running = service.submit(**COUNTING, max_tokens=40)
    service.generating(running)
    answer = service.http.post("/models/unload?wait=30", json={"model": SMOLLM2})
    assert answer.json()["status"] == "available"
    assert service.task(running)["status"] == "completed"


def test_model_that_does_not_fit_fails_in_words_and_the_worker_lives(
    service: RunningService,
) -> None:
    worker = service.gpu_child()
    register(service, context_window=10_000_000, max_num_seqs=256)
    answer = service.http.post("/models/load?wait=30", json={"model": TROUBLED})
    body = answer.json()
    assert (answer.status_code, body["status"], body["requested"]) == (202, "error", None)
    assert "context_window" in body["status_message"]
    assert service.ended(service.submit("hello", max_tokens=2))["status"] == "completed"
    assert service.gpu_child() == worker
