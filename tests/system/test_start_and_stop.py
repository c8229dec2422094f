"""What a user of `make run` sees, from the first line to Ctrl-C."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.running_service import COUNTING, ROOT, RunningService, is_alive, read_proc


@pytest.fixture
def another() -> Iterator[RunningService]:
    """A service with a folder and ports of its own, not started."""
    service = RunningService()
    yield service
    service.close()


def serve_in_vain(service: RunningService, **variables: str) -> list[str]:
    """Run `manage.py serve` that cannot start; returns the lines that it prints."""
    serve = subprocess.run(
        [sys.executable, "manage.py", "serve"],
        cwd=ROOT,
        env={**service.env, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    assert serve.returncode == 1, serve.stdout
    return serve.stdout.splitlines()


def processes_with(text: str) -> list[str]:
    """The processes that have this in their environment or command line."""
    return [
        path.name
        for path in Path("/proc").glob("[0-9]*")
        if text in read_proc(path / "environ") + read_proc(path / "cmdline")
        and is_alive(int(path.name))
    ]


def test_first_run_shows_an_answer_and_the_addresses_and_ctrl_c_leaves_nothing(
    another: RunningService,
) -> None:
    another.start()
    output = another.output()
    assert "Paris" in output, output
    assert f"http://127.0.0.1:{another.port}/docs" in output
    assert f"http://127.0.0.1:{another.flower_port}/" in output

    another.generating(another.submit(**COUNTING, max_tokens=1500))
    processes = another.processes()
    assert len(processes) >= 9  # serve, Valkey, two web, two workers, a pool child, beat, Flower
    started = time.monotonic()
    assert another.stop(signal.SIGINT) == 0
    assert time.monotonic() - started < 10
    assert not any(map(is_alive, processes))
    assert not processes_with(str(another.var_dir))
    assert "Traceback" not in another.output()


def test_busy_port_is_one_clear_line(service: RunningService, another: RunningService) -> None:
    (line,) = serve_in_vain(another, SERVER_PORT=str(service.port))
    assert str(service.port) in line
    assert "SERVER_PORT" in line


def test_second_serve_is_one_clear_line(service: RunningService, another: RunningService) -> None:
    (line,) = serve_in_vain(another, VAR_DIR=str(service.var_dir))
    assert "already runs" in line
