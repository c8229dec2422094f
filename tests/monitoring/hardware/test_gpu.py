"""The GPUs of several nodes, from what NVML tells each worker to the answer of the API."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pytest_django import Settings
from rest_framework.test import APIClient

from inference.execution import gpu_lock
from inference.loading import gpu_reporter
from inference.models import RegisteredModel
from monitoring.hardware import gpu, nvml, worker_identity
from monitoring.redis.client import client
from tests.conftest import Valkey, wait_until
from tests.monitoring.hardware.nvml_readings import NVML, SERVER, WORKSTATION, Machine

GPU = "/api/v1/monitor/gpu"

# As WORKSTATION and SERVER tell it: MiB, percent, watts.
RTX_4090 = {
    "index": 0,
    "name": "NVIDIA GeForce RTX 4090",
    "driver_version": "550.127.05",
    "cuda_version": "12.4",
    "compute_capability": "8.9",
    "total_mb": 24564,
    "used_mb": 17408,
    "free_mb": 6730,
    "used_percent": 70.9,
    "utilization_percent": 97,
    "temperature_c": 71,
    "power_w": 386.2,
}
T4 = {
    "index": 1,
    "name": "Tesla T4",
    "driver_version": "550.127.05",
    "cuda_version": "12.4",
    "compute_capability": "7.5",
    "total_mb": 15360,
    "used_mb": 450,
    "free_mb": 14910,
    "used_percent": 2.9,
    "utilization_percent": 0,
    "temperature_c": 34,
    "power_w": 9.9,
}
H100 = {
    "index": 0,
    "name": "NVIDIA H100 80GB HBM3",
    "driver_version": "570.86.15",
    "cuda_version": "12.8",
    "compute_capability": "9.0",
    "total_mb": 81559,
    "used_mb": 40960,
    "free_mb": 40000,
    "used_percent": 50.2,
    "utilization_percent": None,
    "temperature_c": 45,
    "power_w": None,
}
IDLE: dict[str, Any] = {"is_locked": False, "current_task_id": None, "loaded_models": []}


@pytest.fixture(autouse=True)
def _nothing_cached() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    """What this process has read, and that NVML was initialised."""
    gpu._cached = (float("-inf"), gpu._cached[1])
    nvml._initialise.forget()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> NVML:
    """A machine whose cards can be changed; at first the workstation."""
    stand_in = NVML(WORKSTATION)
    stand_in.install(monkeypatch)
    return stand_in


def publish_as(
    settings: Settings, stand_in: NVML, node: str, machine: Machine, index: int, *models: str
) -> None:
    """As the worker for that GPU of that node does."""
    settings.NODE_NAME, settings.GPU_INDEXES, stand_in.machine = node, [index], machine
    nvml.publish(lambda: list(models))


def shown(stats: Any) -> list[tuple[str, int]]:
    return [(each["node"], each["index"]) for each in stats["gpus"]]


def test_every_field_of_every_gpu_of_two_nodes(
    api: APIClient, settings: Settings, machine: NVML
) -> None:
    publish_as(settings, machine, "workstation", WORKSTATION, 0, "llama", "gemma")
    publish_as(settings, machine, "server", SERVER, 0)
    publish_as(settings, machine, "workstation", WORKSTATION, 1, "smollm2")
    settings.NODE_NAME = "workstation"
    with gpu_lock.hold([1]):
        gpu_lock.show_task([1], "task_1")
        body = api.get(GPU).json()
    assert body == {
        "available": True,
        "gpus": [
            {**H100, "node": "server", **IDLE},
            {**RTX_4090, "node": "workstation", **IDLE, "loaded_models": ["gemma", "llama"]},
            {
                **T4,
                "node": "workstation",
                "is_locked": True,
                "current_task_id": "task_1",
                "loaded_models": ["smollm2"],
            },
        ],
    }


def test_lease_of_a_gpu_locks_no_gpu_of_another_node(
    valkey: Valkey, settings: Settings, machine: NVML
) -> None:
    publish_as(settings, machine, "a", SERVER, 0)
    publish_as(settings, machine, "b", SERVER, 0)
    with gpu_lock.hold([0]):
        locked = {each["node"]: each["is_locked"] for each in gpu.stats()["gpus"]}
    assert locked == {"a": False, "b": True}


@pytest.mark.parametrize("path", [GPU, f"{GPU}/"])
def test_without_a_gpu_there_is_an_answer(api: APIClient, machine: NVML, path: str) -> None:
    machine.machine = None
    gpu_reporter.report()
    response = api.get(path)
    assert response.status_code == 200
    assert response.json() == {"available": False, "gpus": []}


def test_without_redis_nothing_is_known_and_nothing_fails(
    api: APIClient, valkey: Valkey, machine: NVML, caplog: pytest.LogCaptureFixture
) -> None:
    valkey.stop()
    gpu_reporter.report()
    assert "GPU readings cannot be published" in caplog.text
    assert api.get(GPU).json() == {"available": False, "gpus": []}


def test_unknown_parameter_is_refused(api: APIClient) -> None:
    response = api.get(GPU, {"indx": 1})
    assert response.status_code == 400
    assert response.json()["error"] == "validation_error"


def test_lost_card_hides_no_other(valkey: Valkey, settings: Settings, machine: NVML) -> None:
    half_gone = replace(WORKSTATION, cards=[None, WORKSTATION.cards[1]])
    publish_as(settings, machine, "node", half_gone, 0)
    assert shown(gpu.stats()) == [("node", 1)]


def test_card_that_tells_nothing_is_shown_with_nulls(
    valkey: Valkey, settings: Settings, machine: NVML
) -> None:
    card = SERVER.cards[0]
    assert card is not None
    silent = replace(card, compute_capability=None, memory=None, temperature=None)
    publish_as(settings, machine, "node", replace(SERVER, cards=[silent]), 0)
    [reading] = gpu.stats()["gpus"]
    untold = [name for name, value in reading.items() if value is None]
    assert untold == [
        *("compute_capability", "total_mb", "used_mb", "free_mb", "used_percent"),
        *("utilization_percent", "temperature_c", "power_w", "current_task_id"),
    ]


def test_nvml_is_initialised_once(machine: NVML) -> None:
    for _ in range(3):
        assert len(nvml.read()) == 2
        assert nvml.memory(1) is not None
    assert machine.num_inits == 1


def test_driver_that_comes_later_is_found(machine: NVML) -> None:
    machine.machine = None
    assert nvml.read() == []
    assert nvml.memory(0) is None
    machine.machine = SERVER
    assert [reading["name"] for reading in nvml.read()] == ["NVIDIA H100 80GB HBM3"]


def test_readings_of_a_silent_worker_are_gone(
    valkey: Valkey, settings: Settings, machine: NVML, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_as(settings, machine, "node", SERVER, 0)
    assert 0 < client().pttl(gpu.HEARTBEATS) <= 8000
    monkeypatch.setattr(nvml, "_EXPIRY_SECONDS", 0.05)
    publish_as(settings, machine, "node", SERVER, 0)
    wait_until(lambda: gpu._read() == {"available": False, "gpus": []})


def test_many_askers_read_redis_once(
    valkey: Valkey, settings: Settings, machine: NVML, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_as(settings, machine, "node", SERVER, 0)
    first = gpu.stats()
    reads: list[int] = []
    monkeypatch.setattr(gpu, "_read", lambda: reads.append(1))
    assert [gpu.stats() for _ in range(10)] == [first] * 10
    assert reads == []


@pytest.mark.django_db(transaction=True)
def test_worker_shows_the_models_that_its_own_children_hold(
    valkey: Valkey, settings: Settings, machine: NVML
) -> None:
    settings.NODE_NAME, settings.GPU_INDEXES = "node", [0]
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine = worker_identity.of_pid(child.pid)
    rows = [
        ("held", "loaded", mine),
        ("half-way", "loading", mine),
        ("elsewhere", "loaded", f"other:{child.pid}"),
        ("of-another-worker", "loaded", worker_identity.of_pid(os.getppid())),
        ("on-disk", "available", ""),
    ]
    for name, status, loaded_by in rows:
        RegisteredModel.objects.create(
            name=name, provider="local", status=status, loaded_by=loaded_by
        )
    gpu_reporter.report()
    child.communicate(b"\n")
    assert [each["loaded_models"] for each in gpu.stats()["gpus"]] == [["held"], []]
