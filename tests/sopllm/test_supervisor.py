"""The supervisor, with real child processes: what it restarts, says, and never leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from sopllm.supervisor import describe_exit, restart_delay

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent.parent

SUPERVISE = """
import json, sys
from pathlib import Path
from typing import TypeVar
from sopllm.supervisor import ProcessSpec, Supervisor

def start_up():
    for name, command in json.loads(sys.argv[2]).items():
        supervisor.start(ProcessSpec(name, command))
    print("started", flush=True)

supervisor = Supervisor(Path(sys.argv[1]), lambda line: print(line, flush=True))
supervisor.run(start_up)
"""
SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
IGNORE_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
WITH_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {IGNORE_SIGTERM!r}])
{SLEEP}
"""
LEAVE_CHILD = f"""
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
print(os.getpid(), flush=True)
"""
TELL_END = """
import os, signal, sys, time
def end(*_):
    with open(sys.argv[1], "a") as order:
        order.write(sys.argv[2] + "\\n")
    sys.exit()
signal.signal(signal.SIGTERM, end)
print(os.getpid(), flush=True)
time.sleep(600)
"""
CELERY_APP = """
from celery import Celery
app = Celery("toy", broker="memory://")
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def wait_for(get: Callable[[], T], limit_seconds: float = 15.0) -> T:
    deadline = time.monotonic() + limit_seconds
    while not (value := get()):
        assert time.monotonic() < deadline, f"nothing after {limit_seconds} s"
        time.sleep(0.01)
    return value


def is_alive(pid: int) -> bool:
    return process_stat(pid)[:1] not in ([], ["Z"])


def process_stat(pid: int | str) -> list[str]:
    """State, parent, process group, ... of a process; nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def children(parent: int) -> list[int]:
    pids = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [int(pid) for pid in pids if process_stat(pid)[1:2] == [str(parent)]]


class Supervised:
    """A supervisor in a process of its own."""

    def __init__(self, folder: Path, commands: dict[str, list[str]]) -> None:
        self.folder = folder
        self.output = folder / "output"
        # Without our Django settings, which a toy Celery app would load.
        env = {name: os.environ[name] for name in os.environ if name != "DJANGO_SETTINGS_MODULE"}
        command = python(SUPERVISE, str(folder), json.dumps(commands))
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output)

    def pids(self, name: str, count: int = 1) -> list[int]:
        """The pids that a process and its children have written to its log."""

        def read() -> list[int]:
            path = self.folder / f"{name}.log"
            lines = path.read_text().splitlines() if path.exists() else []
            return [int(line) for line in lines] if len(lines) >= count else []

        return wait_for(read)

    def says(self, text: str) -> bool:
        return wait_for(lambda: text in self.output.read_text())

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; return the seconds until the supervisor has ended."""
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=15)
        return time.monotonic() - started


Supervise = Callable[[dict[str, list[str]]], Supervised]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    started: list[Supervised] = []

    def start(commands: dict[str, list[str]]) -> Supervised:
        started.append(Supervised(tmp_path, commands))
        return started[-1]

    yield start
    for supervised in started:
        supervised.process.kill()
        supervised.process.wait()


def test_killed_process_is_started_again(supervise: Supervise) -> None:
    supervised = supervise({"toy": python(SLEEP)})
    first = supervised.pids("toy")[0]
    os.kill(first, signal.SIGKILL)
    second = supervised.pids("toy", count=2)[1]
    assert is_alive(second)
    assert supervised.says("toy died (SIGKILL), starting it again")


def test_process_that_exits_at_once_is_tried_with_delay(supervise: Supervise) -> None:
    supervised = supervise({"toy": python("raise SystemExit(3)")})
    assert supervised.says("toy exits at once, 2 times so far (exit status 3)")
    assert supervised.says("toy.log; next try in 1 s")


def test_command_that_cannot_be_started_is_told(supervise: Supervise) -> None:
    supervised = supervise({"toy": ["/nowhere/toy"]})
    assert supervised.says("toy exits at once, 2 times so far")
    assert supervised.signal(signal.SIGINT) < 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_signal_stops_all(supervise: Supervise, number: signal.Signals) -> None:
    supervised = supervise({"one": python(SLEEP), "two": python(SLEEP)})
    pids = supervised.pids("one") + supervised.pids("two")
    assert supervised.signal(number) < 10
    assert supervised.process.returncode == 0
    assert not any(map(is_alive, pids))


def test_processes_stop_in_reverse_order(supervise: Supervise, tmp_path: Path) -> None:
    order = tmp_path / "order"
    names = ["one", "two", "three"]
    supervised = supervise({name: python(TELL_END, str(order), name) for name in names})
    for name in names:
        supervised.pids(name)
    supervised.signal(signal.SIGINT)
    assert order.read_text().split() == ["three", "two", "one"]


def test_process_that_ignores_sigterm_is_killed_in_time(supervise: Supervise) -> None:
    supervised = supervise({"stubborn": python(IGNORE_SIGTERM)})
    pid = supervised.pids("stubborn")[0]
    assert supervised.signal(signal.SIGINT) < 10
    assert not is_alive(pid)


def test_stop_reaches_grandchildren(supervise: Supervise) -> None:
    supervised = supervise({"parent": python(WITH_CHILD)})
    pids = supervised.pids("parent", count=2)
    supervised.signal(signal.SIGINT)
    wait_for(lambda: not any(map(is_alive, pids)))


def test_death_of_leader_takes_its_group_along(supervise: Supervise) -> None:
    supervised = supervise({"parent": python(LEAVE_CHILD)})
    first_two = supervised.pids("parent", count=2)[:2]
    wait_for(lambda: not any(map(is_alive, first_two)))


def test_second_ctrl_c_kills_at_once(supervise: Supervise) -> None:
    supervised = supervise({"stubborn": python(IGNORE_SIGTERM)})
    pid = supervised.pids("stubborn")[0]
    started = time.monotonic()
    supervised.process.send_signal(signal.SIGINT)
    supervised.says("Stopping")
    # Signals in the first half second count as one, so keep pressing.
    while supervised.process.poll() is None and time.monotonic() - started < 10:
        supervised.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert time.monotonic() - started < 2.5
    assert not is_alive(pid)


def test_kill_9_of_supervisor_leaves_no_child(supervise: Supervise) -> None:
    supervised = supervise({"one": python(IGNORE_SIGTERM), "two": python(SLEEP)})
    pids = supervised.pids("one") + supervised.pids("two")
    supervised.signal(signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, pids)))


def test_kill_9_of_supervisor_leaves_no_celery_pool_child(
    supervise: Supervise, tmp_path: Path
) -> None:
    (tmp_path / "toy_celery.py").write_text(CELERY_APP)
    celery = [sys.executable, "-m", "celery", "-A", "toy_celery", "--workdir", str(tmp_path)]
    options = ["--pool=prefork", "--concurrency=1", "--loglevel=INFO"]
    supervised = supervise({"worker": [*celery, "worker", *options]})
    (worker,) = wait_for(lambda: children(supervised.process.pid))
    log = tmp_path / "worker.log"
    wait_for(lambda: " ready." in log.read_text(), limit_seconds=60)
    pool = wait_for(lambda: children(worker))
    supervised.signal(signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, [worker, *pool])))


def test_log_of_last_run_is_kept(supervise: Supervise, tmp_path: Path) -> None:
    (tmp_path / "toy.log").write_text("last run\n")
    supervised = supervise({"toy": python(SLEEP)})
    assert supervised.says("started")
    assert (tmp_path / "toy.log.1").read_text() == "last run\n"


def test_restart_delays_grow_to_half_a_minute() -> None:
    assert [restart_delay(count) for count in range(1, 9)] == [0, 1, 2, 4, 8, 16, 30, 30]


def test_exits_are_named() -> None:
    assert (describe_exit(1), describe_exit(-9)) == ("exit status 1", "SIGKILL")
    assert describe_exit(-40) == "signal 40"
