"""Ctrl-C; the last tests of a run, since they stop the service that all others share."""

import signal
import time
from pathlib import Path

from benchmarks.running_service import COUNTING, RunningService, is_alive, read_proc
from tests.cloud_server import CloudServer
from tests.otlp_server import OtlpServer
from tests.system.conftest import LANGFUSE_SECRET_KEY, register_cloud

CLOUD_KEY = "key-never-to-be-seen"


def processes_with(text: str) -> list[str]:
    """The processes that have this in their environment or command line."""
    return [
        path.name
        for path in Path("/proc").glob("[0-9]*")
        if text in read_proc(path / "environ") + read_proc(path / "cmdline")
        and is_alive(int(path.name))
    ]


def test_stop_sends_what_is_left_and_leaves_neither_processes_nor_keys(
    running_service: RunningService, langfuse: OtlpServer
) -> None:
    service = running_service
    with CloudServer(key=None) as cloud:
        register_cloud(service, "cloud", cloud, api_key=CLOUD_KEY)
        service.ended(service.submit("one", "cloud"))
    running = service.submit(**COUNTING, max_tokens=1500)
    service.generating(running)
    task_ids = [service.submit("Hello", max_tokens=2), service.submit("one", "echo")]
    tasks = [service.ended(task_id, 60) for task_id in task_ids]
    assert service.task(running)["status"] == "processing"

    processes = service.processes()
    assert len(processes) >= 9  # serve, Valkey, two web, two workers, a pool child, beat, Flower
    started = time.monotonic()
    assert service.stop(signal.SIGINT) == 0
    assert time.monotonic() - started < 10
    assert not any(map(is_alive, processes))
    assert not processes_with(str(service.var_dir))
    assert "Traceback" not in service.output()

    for task in tasks:
        assert len(langfuse.of_trace(task["trace_id"])) == 1
    for key in (LANGFUSE_SECRET_KEY, CLOUD_KEY):
        assert not any(key.encode() in body for body in langfuse.bodies)
        kept = [path for path in service.var_dir.rglob("*") if path.is_file()]
        assert not [path for path in kept if key.encode() in path.read_bytes()]
