"""One running service for all tests, which leave nothing unfinished in it.

It knows a hub and a Langfuse server that run in this process; tests register clouds of their own.
"""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from benchmarks.running_service import MINILM, SMOLLM2, RunningService, wait_for
from tests import otlp_server
from tests.cloud_server import CloudServer
from tests.hub_server import HubServer, serving_hub
from tests.otlp_server import OtlpServer

# SmolLM2 once more, without any sharing of batches: what waits for it really waits.
ONE_AT_A_TIME = "one-at-a-time"
# Presets of models in the hub, each with a file of its own: `<name>.gguf`.
HUB_REPO = "org/smollm2-GGUF"
HUB_PRESETS = ("killed", "deleted")
# Nothing but the service itself may see these.
HUB_TOKEN = "hf_" + "s" * 34
NAMED_API_KEY = "stand-in-key-named-9876543210"
LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY = "pk-lf-0123456789", "sk-lf-never-to-be-seen"

SETTINGS = {
    "LEASE_SECONDS": "6",
    "SWEEP_INTERVAL_SECONDS": "1",
    "RING_AGAIN_SECONDS": "1",
    "DEFAULT_EMBEDDING_MODEL": MINILM,
    # A worker that dies takes long to load PyTorch anew where other tests keep the cores busy.
    "EMBEDDING_TIMEOUT_SECONDS": "90",
    # Receivers of tests are on loopback, and are asked again soon.
    "WEBHOOK_ALLOWED_HOSTS": "127.0.0.1",
    "WEBHOOK_RETRY_SECONDS": "0.2",
    "HF_TOKEN": HUB_TOKEN,
    "NAMED_API_KEY": NAMED_API_KEY,
    "LANGFUSE_PUBLIC_KEY": LANGFUSE_PUBLIC_KEY,
    "LANGFUSE_SECRET_KEY": LANGFUSE_SECRET_KEY,
}


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    with serving_hub() as server:
        yield server


@pytest.fixture(scope="session")
def langfuse() -> Iterator[OtlpServer]:
    with otlp_server.running(LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY) as server:
        yield server


@pytest.fixture(scope="session")
def running_service(
    request: pytest.FixtureRequest,
    hub: HubServer,
    langfuse: OtlpServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningService]:
    """The service itself, for fixtures of a module and for the tests that stop it."""
    presets_dir = tmp_path_factory.mktemp("presets")
    presets = [_hub_preset(name) for name in HUB_PRESETS]
    (presets_dir / "local_models.yaml").write_text(yaml.safe_dump(presets))
    addresses = {
        "HF_ENDPOINT": hub.url,
        "LANGFUSE_HOST": langfuse.url,
        "PRESETS_DIRS": str(presets_dir),
    }
    service = RunningService(**SETTINGS, **addresses)
    try:
        service.start()
        service.register_echo()
        service.register_echo("slow-echo", delay_ms=100)
        _register_one_at_a_time(service)
        yield service
    finally:
        if request.session.testsfailed:
            sys.stderr.write(service.log_tails())
        service.close()


def _hub_preset(name: str) -> dict[str, Any]:
    """An entry of a catalogue."""
    filename = f"{name}.gguf"
    origin = {"source": "hub", "huggingface_repo": HUB_REPO, "filename": filename}
    what = {"name": name, "provider": "local", "size_b": 0.135, "files": {"Q4_1": filename}}
    return {**what, **origin, "provider_config": {"context_window": 2048}}


def _register_one_at_a_time(service: RunningService) -> None:
    weights = service.model(SMOLLM2)["config"]["model_path"]
    config = {"model_path": weights, "context_window": 2048, "max_num_seqs": 1}
    body = {"name": ONE_AT_A_TIME, "provider": "local", "config": config}
    service.http.post("/models/register", json=body).raise_for_status()


@pytest.fixture
def service(running_service: RunningService) -> Iterator[RunningService]:
    """The whole service; what a test submits has to end."""
    yield running_service
    wait_for(lambda: not _unfinished(running_service))


def _unfinished(service: RunningService) -> list[str]:
    return [
        task["task_id"]
        for status in ("pending", "processing")
        for task in service.http.get("/tasks", params={"status": status}).json()["results"]
    ]


def register_cloud(service: RunningService, name: str, cloud: CloudServer, **config: Any) -> None:
    """Register a model that asks this cloud."""
    config = {"model_name": "stand-in", "base_url": cloud.openai_url, "timeout": 20} | config
    body = {"name": name, "provider": "openai_compatible", "config": config}
    service.http.post("/models/register", json=body).raise_for_status()
