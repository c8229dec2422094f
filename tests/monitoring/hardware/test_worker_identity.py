"""Which worker is gone, and which one is only silent."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from monitoring.hardware import worker_identity
from tests.conftest import wait_until


@pytest.mark.parametrize("has_start_time", [True, False])
def test_killed_process_is_gone_before_its_parent_has_looked(has_start_time: bool) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    old_form = f"{socket.gethostname()}:{child.pid}"
    worker = worker_identity.of_pid(child.pid) if has_start_time else old_form
    assert not worker_identity.is_gone(worker)
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: worker_identity.is_gone(worker))  # a zombie: nobody has waited for it
    child.wait()
    assert worker_identity.is_gone(worker)


def test_process_whose_number_is_reused_is_gone() -> None:
    mine = worker_identity.current()
    former = f"{mine.rpartition(':')[0]}:1"
    assert worker_identity.is_gone(former)
    assert not worker_identity.is_gone(mine)


def test_processes_of_other_hosts_are_not_gone() -> None:
    assert not worker_identity.is_gone("elsewhere:999999999")
    assert not worker_identity.is_gone("elsewhere:999999999:1")


def test_forked_process_has_an_identity_of_its_own() -> None:
    parent = worker_identity.current()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, worker_identity.current().encode())
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        os.close(writer)
        assert pipe.read().startswith(worker_identity.prefix_of(child))
    assert worker_identity.current() == parent
