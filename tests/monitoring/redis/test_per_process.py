"""Objects of which each process has one."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from monitoring.redis.per_process import PerProcess

NUM_CALLERS = 8


class Slow:
    """Takes long enough to make that all callers come meanwhile."""

    num_made = 0

    def __init__(self) -> None:
        time.sleep(0.1)
        Slow.num_made += 1


def num_made_by_racing_callers(made: Callable[[], Slow]) -> int:
    Slow.num_made = 0
    all_come_first = threading.Barrier(NUM_CALLERS)

    def call() -> Slow:
        all_come_first.wait()
        return made()

    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        taken = [each.result() for each in [pool.submit(call) for _ in range(NUM_CALLERS)]]
    assert set(taken) == {made()}
    return Slow.num_made


def child_succeeds(check: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if check() else 1)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def test_racing_first_callers_make_one_object_in_each_process() -> None:
    made = PerProcess(Slow)
    assert num_made_by_racing_callers(made) == 1
    assert child_succeeds(lambda: num_made_by_racing_callers(made) == 1)


def test_forked_child_makes_its_own() -> None:
    made = PerProcess(os.getpid)
    assert made() == made() == os.getpid()
    assert child_succeeds(lambda: made() == os.getpid())
    assert made() == os.getpid()


def test_fork_while_the_object_is_being_made_holds_up_no_child() -> None:
    is_making, may_end = threading.Event(), threading.Event()

    @PerProcess
    def made() -> int:
        if os.getpid() == parent:
            is_making.set()
            may_end.wait()
        return os.getpid()

    parent = os.getpid()
    thread = threading.Thread(target=made)
    thread.start()
    is_making.wait()
    assert child_succeeds(lambda: made() == os.getpid())
    may_end.set()
    thread.join()
    assert made() == parent


def test_inherited_object_is_not_even_deleted() -> None:
    class Inherited:
        num_deleted = 0

        def __del__(self) -> None:
            Inherited.num_deleted += 1

    made = PerProcess(Inherited)
    made()
    assert child_succeeds(lambda: isinstance(made(), Inherited) and Inherited.num_deleted == 0)


def test_failed_making_is_tried_again() -> None:
    failures = [ValueError("not now")]

    @PerProcess
    def made() -> int:
        if failures:
            raise failures.pop()
        return 1

    with pytest.raises(ValueError, match="not now"):
        made()
    assert made() == 1
