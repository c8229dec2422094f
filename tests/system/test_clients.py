"""The SDKs that people have, unmodified, against the running service.

Their tests, in tests/clients, run in an environment of their own: the newest SDKs need other
versions than the service's packages do.
"""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from benchmarks.running_service import GPU_WORKER, ROOT, RunningService

CLIENTS_PYTHON = ROOT / ".venv/clients/bin/python"
TESTS_OF_ERRORS = "tests/clients/test_errors.py"

pytestmark = [
    pytest.mark.skipif(not CLIENTS_PYTHON.exists(), reason="`make test` installs the clients"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def small_service() -> Iterator[RunningService]:
    """One whose limits are met soon, and whose local models nobody runs."""
    service = RunningService(
        MAX_BODY_BYTES="100000",
        MAX_FILE_BYTES="1000000",
        MAX_PENDING_TASKS="2",
        SWEEP_INTERVAL_SECONDS="1",
    )
    try:
        service.start()
        stopped = [service.gpu_child(), service.pid(GPU_WORKER)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        yield service
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    finally:
        service.close()


def test_clients_of_others_work_unchanged(service: RunningService) -> None:
    run_tests(service, "tests/clients", f"--ignore={TESTS_OF_ERRORS}")


def test_errors_are_those_of_the_clients(small_service: RunningService) -> None:
    run_tests(small_service, TESTS_OF_ERRORS)


def run_tests(service: RunningService, *arguments: str) -> None:
    """Tests of clients, in their environment."""
    done = subprocess.run(
        [CLIENTS_PYTHON, "-m", "pytest", "-c", "tests/clients/pytest.ini", *arguments],
        cwd=ROOT,
        env={**os.environ, "SERVICE_URL": service.base_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
