"""Objects of which each process has one."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from monitoring.redis.per_process import PerProcess


def test_threads_that_come_first_at_once_take_the_same() -> None:
    all_make_one = threading.Barrier(4)

    @PerProcess
    def made() -> object:
        all_make_one.wait()
        return object()

    with ThreadPoolExecutor(4) as pool:
        taken = [each.result() for each in [pool.submit(made) for _ in range(4)]]
    assert set(taken) == {made()}


def test_forked_child_makes_its_own() -> None:
    @PerProcess
    def made() -> int:
        return os.getpid()

    assert made() == made() == os.getpid()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if made() == os.getpid() else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert made() == os.getpid()
