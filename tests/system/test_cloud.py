"""The whole service and a cloud that fails: retries, fallbacks, cancels, kills, and keys."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults
from benchmarks.running_service import SMOLLM2, RunningService, wait_for
from tests.cloud_server import KEY, CloudServer, Fault
from tests.system.conftest import NAMED_API_KEY, register_cloud

NUM_TASKS = 100
WORDS = "alpha beta gamma delta epsilon zeta"
# Secrets: no file, answer or log may have them.
STORED_API_KEY = f"{KEY}-stored-0123456789"
# Models of the cloud, and what they are registered with.
MODELS: dict[str, dict[str, Any]] = {
    "stored": {"api_key": STORED_API_KEY, "max_retries": 4},
    "named": {"api_key_env_var": "NAMED_API_KEY", "max_retries": 4},
    "given-up": {"api_key": STORED_API_KEY, "max_retries": 0},
}


@pytest.fixture(scope="module")
def cloud(running_service: RunningService) -> Iterator[CloudServer]:
    """The cloud that MODELS ask, while they are registered."""
    with CloudServer(key=None) as server:
        for name, config in MODELS.items():
            register_cloud(running_service, name, server, **config)
        yield server
        for name in MODELS:
            running_service.http.delete(f"/models/{name}").raise_for_status()


@pytest.fixture(autouse=True)
def _sound_cloud(cloud: CloudServer) -> Iterator[None]:
    yield
    cloud.faults.clear()
    cloud.fault_rate = cloud.token_delay_ms = 0


def submit_all(service: RunningService, *models: str, **fields: Any) -> list[str]:
    bodies = [
        {"model": models[index % len(models)], "prompt": WORDS, "max_tokens": 64} | fields
        for index in range(NUM_TASKS)
    ]
    response = service.http.post("/tasks/batch", json=bodies).raise_for_status()
    return [task["task_id"] for task in response.json()]


def story(service: RunningService, task_id: str) -> list[tuple[str, str]]:
    return [(each["model"], each["outcome"]) for each in service.report(task_id)["attempts"]]


def test_tasks_end_right_while_one_of_ten_answers_is_a_fault(
    service: RunningService, cloud: CloudServer
) -> None:
    cloud.fault_rate = 0.1
    for task_id in submit_all(service, "stored", "named"):
        task = service.ended(task_id, 60)
        assert (task["status"], task["error"]) == ("completed", None)
        assert task["result"]["text"] == WORDS


def test_every_fault_goes_on_to_the_fallback(service: RunningService, cloud: CloudServer) -> None:
    cloud.fault_rate = 0.3
    answered_by = []
    for task_id in submit_all(service, "given-up", fallback_models=["echo"]):
        task = service.ended(task_id, 60)
        assert (task["status"], task["result"]["text"]) == ("completed", WORDS)
        assert task["model"] == "given-up"
        answered_by.append(task["result"]["model"])
        if answered_by[-1] == "echo":
            assert story(service, task_id) == [("given-up", "failed"), ("echo", "completed")]
    assert set(answered_by) == {"given-up", "echo"}


def test_local_model_answers_for_a_cloud_that_refuses_the_key(
    service: RunningService, cloud: CloudServer
) -> None:
    cloud.faults.append(Fault.UNAUTHORIZED)
    task_id = service.submit(WORDS, "stored", fallback_models=[SMOLLM2], max_tokens=8)
    task = service.ended(task_id, 60)
    assert (task["status"], task["result"]["model"]) == ("completed", SMOLLM2)
    first = service.report(task_id)["attempts"][0]
    assert (first["outcome"], first["error_code"]) == ("failed", "authentication_failed")


def test_cloud_answers_for_a_local_model_that_cannot_be_loaded(
    service: RunningService, cloud: CloudServer
) -> None:
    models_dir = service.var_dir / "models"
    weights = models_dir / "gone.gguf"
    weights.write_bytes((models_dir / service.model(SMOLLM2)["config"]["model_path"]).read_bytes())
    body = {"name": "gone", "provider": "local", "config": {"model_path": "gone.gguf"}}
    service.http.post("/models/register", json=body).raise_for_status()
    weights.write_bytes(b"no weights")
    task_id = service.submit(WORDS, "gone", fallback_models=["named"])
    assert service.ended(task_id, 60)["result"]["text"] == WORDS
    assert story(service, task_id) == [("gone", "failed"), ("named", "completed")]
    service.http.delete("/models/gone").raise_for_status()


def test_cancel_closes_the_connection_to_the_provider(
    service: RunningService, cloud: CloudServer
) -> None:
    cloud.token_delay_ms = 200
    task_id = service.submit(20 * WORDS, "stored")
    service.generating(task_id)
    [call] = [each for each in cloud.calls if not each.is_answered and not each.closed_at][-1:]
    service.http.post(f"/tasks/{task_id}/cancel").raise_for_status()
    task = service.ended(task_id)
    assert (task["status"], task["result"]["text"][:5]) == ("cancelled", "alpha")
    wait_for(lambda: call.closed_at, 5)


def test_killed_worker_asks_the_cloud_again(service: RunningService, cloud: CloudServer) -> None:
    cloud.token_delay_ms = 200
    task_id = service.submit(3 * f"{WORDS} ", "stored")
    service.generating(task_id)
    cloud.token_delay_ms = 0
    faults.kill_api_worker(service)
    assert service.ended(task_id, 60)["status"] == "completed"
    assert story(service, task_id) == [("stored", "lost"), ("stored", "completed")]


@pytest.mark.parametrize("fault", [Fault.UNAUTHORIZED, Fault.SERVER_ERROR])
def test_no_key_is_told_when_a_provider_repeats_it(
    service: RunningService, cloud: CloudServer, fault: Fault
) -> None:
    cloud.faults.append(fault)
    task = service.ended(service.submit(WORDS, "given-up"), 60)
    assert task["status"] == "failed"
    assert KEY not in json.dumps(task)


def test_no_key_is_anywhere(service: RunningService, cloud: CloudServer) -> None:
    """After all of the above: in no file, no answer of the API, and nothing that Redis holds."""
    sent = {call.headers["Authorization"] for call in cloud.calls}
    assert sent == {f"Bearer {STORED_API_KEY}", f"Bearer {NAMED_API_KEY}"}
    needles = [STORED_API_KEY.encode(), NAMED_API_KEY.encode()]
    places = {str(path): data for path, data in files(service.var_dir)} | answers(service)
    assert sum(map(len, places.values())) > 100_000
    found = [place for place, data in places.items() if any(each in data for each in needles)]
    assert found == []


def files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """The database with its journal, the logs, and what Valkey has written: all but the weights."""
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".gguf":
            data = path.read_bytes()
            yield path, gzip.decompress(data) if path.suffix == ".gz" else data


def answers(service: RunningService) -> dict[str, bytes]:
    """What the API says of everything that has to do with the cloud."""
    paths = [
        *("/tasks?limit=1000", "/models", "/models/stored", "/models/named", "/models/presets"),
        *("/monitor/logs?limit=1000", "/monitor/events?limit=1000", "/monitor/queue"),
        *("/monitor/health", "/monitor/stats", f"{service.base_url}/metrics"),
    ]
    for model in MODELS:
        tasks = service.http.get(f"/tasks?limit=1000&model={model}").json()["results"]
        paths += [f"/tasks/{task['task_id']}/report" for task in tasks]
    return {path: service.http.get(path).content for path in paths}
