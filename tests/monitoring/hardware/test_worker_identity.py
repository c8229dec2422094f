"""Who is dead, and who is only silent."""

import os
import signal
import socket
import subprocess
import sys

from monitoring.hardware import worker_identity
from tests.conftest import wait_until


def test_killed_process_is_dead_before_its_parent_has_looked() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    worker = f"{socket.gethostname()}:{child.pid}"
    assert not worker_identity.is_dead(worker)
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: worker_identity.is_dead(worker))  # a zombie: nobody has waited for it
    child.wait()
    assert worker_identity.is_dead(worker)


def test_living_process_and_those_of_other_hosts_are_not_dead() -> None:
    assert not worker_identity.is_dead(worker_identity.current())
    assert not worker_identity.is_dead("elsewhere:999999999")
