"""The SDKs that people have, unmodified, against the running service.

Their tests, in tests/clients, run in an environment of their own: the newest SDKs need other
versions than the service's packages do.
"""

import os
import subprocess

import pytest

from benchmarks.running_service import ROOT, RunningService

CLIENTS_PYTHON = ROOT / ".venv/clients/bin/python"


@pytest.mark.skipif(not CLIENTS_PYTHON.exists(), reason="`make test` installs the clients")
@pytest.mark.timeout(600)
def test_clients_of_others_work_unchanged(service: RunningService) -> None:
    done = subprocess.run(
        [CLIENTS_PYTHON, "-m", "pytest", "-c", "tests/clients/pytest.ini", "tests/clients"],
        cwd=ROOT,
        env={**os.environ, "SERVICE_URL": service.base_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
