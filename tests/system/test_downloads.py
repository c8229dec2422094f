"""The whole service and a hub: a worker is killed in mid-download, a model is deleted."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import connect

from benchmarks.running_service import DEFAULT_WORKER, RunningService, wait_for
from tests.conftest import packaged_file
from tests.hub_server import HubServer
from tests.live_server import Client
from tests.system.conftest import HUB_PRESETS, HUB_REPO, HUB_TOKEN


@pytest.fixture(scope="module", autouse=True)
def _files(hub: HubServer) -> None:
    weights = packaged_file("smollm2-135m-instruct").read_bytes()
    hub.files |= {f"{HUB_REPO}/{name}.gguf": weights for name in HUB_PRESETS}
    hub.faults.token = HUB_TOKEN


def download(service: RunningService, name: str) -> None:
    """Have the model of a preset downloaded."""
    answer = service.http.post("/models/register-from-preset", json={"preset_name": name})
    assert (answer.status_code, answer.json()["status"]) == (201, "downloading"), answer.text


def test_download_goes_on_after_its_worker_was_killed(
    service: RunningService, hub: HubServer
) -> None:
    size = len(hub.files[f"{HUB_REPO}/killed.gguf"])
    partial = service.var_dir / "models" / "killed.gguf.partial"
    hub.faults.bytes_per_second = 30e6
    with connect(f"ws://127.0.0.1:{service.port}/ws/monitor", proxy=None) as connection:
        client = Client(connection)
        client.subscribe("model.download_progress")
        download(service, "killed")
        wait_for(lambda: partial.exists() and partial.stat().st_size > size / 3)
        os.kill(service.pid(DEFAULT_WORKER), signal.SIGKILL)
        model = wait_for(lambda: arrived(service, "killed"), 60)
        told = list(progress(client))
    assert (model["status"], model["size_bytes"], model["download"]) == ("available", size, None)
    assert model["extra"]["architecture"] == "llama"

    first, second = hub.ranges
    assert first is None
    assert second is not None
    start = int(second.removeprefix("bytes=").removesuffix("-"))
    assert size / 3 < start < size
    # Neither the token nor a signed address is left anywhere.
    assert {fetch.authorization for fetch in hub.fetches} == {None}
    logs = "".join(path.read_text() for path in (service.var_dir / "log").glob("*.log"))
    assert "killed: download, attempt 2" in logs
    assert HUB_TOKEN not in logs
    assert "Signature" not in logs

    assert {data["model"] for data in told} == {"killed"}
    assert told[-1]["status"] == "available"
    assert told[-1]["downloaded_bytes"] == told[-1]["total_bytes"] == size
    assert any(data["bytes_per_second"] for data in told)

    task = service.ended(service.submit("Say hello.", "killed", max_tokens=4))
    assert task["status"] == "completed"


def test_deleting_the_model_ends_its_download(service: RunningService, hub: HubServer) -> None:
    partial = service.var_dir / "models" / "deleted.gguf.partial"
    hub.faults.bytes_per_second = 5e6
    download(service, "deleted")
    wait_for(lambda: partial.exists() and partial.stat().st_size > 1_000_000)
    service.http.delete("/models/deleted").raise_for_status()
    assert not partial.exists()
    wait_for(lambda: "deleted: its download is not this worker's" in service.log_tails())
    assert not partial.exists()
    assert not partial.with_suffix("").exists()


def arrived(service: RunningService, name: str) -> dict[str, Any] | None:
    model = service.model(name)
    return None if model["status"] == "downloading" else model


def progress(client: Client) -> Iterator[dict[str, Any]]:
    """What was told of the download, up to its end."""
    while True:
        message = client.hear()
        if message["type"] == "model.download_progress":
            yield message["data"]
            if message["data"]["status"] == "available":
                return
