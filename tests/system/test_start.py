"""What a user of `make run` sees when it starts, or cannot."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.running_service import ROOT, RunningService


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


def test_first_run_shows_an_answer_and_the_addresses(service: RunningService) -> None:
    output = service.output()
    assert "Paris" in output, output
    assert f"http://127.0.0.1:{service.port}/docs" in output
    assert f"http://127.0.0.1:{service.flower_port}/" in output


def test_what_it_writes_is_for_its_user_alone(service: RunningService) -> None:
    written = ["db.sqlite3*", "valkey/*", "valkey/*/*", "log/*", "beat-schedule*", "serve.lock"]
    for pattern in written:
        paths = list(service.var_dir.glob(pattern))
        assert paths
        for path in paths:
            assert path.stat().st_mode & 0o077 == 0, path


def test_busy_port_is_one_clear_line(service: RunningService, another: RunningService) -> None:
    (line,) = serve_in_vain(another, SERVER_PORT=str(service.port))
    assert str(service.port) in line
    assert "SERVER_PORT" in line


def test_second_serve_is_one_clear_line(service: RunningService, another: RunningService) -> None:
    (line,) = serve_in_vain(another, VAR_DIR=str(service.var_dir))
    assert "already runs" in line
