"""What can go wrong with a running service, done to it for real: SIGKILL, and lost data."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.running_service import (
    API_WORKER,
    DEFAULT_WORKER,
    GPU_WORKER,
    ROOT,
    VALKEY,
    RunningService,
    is_alive,
    read_proc,
    wait_for,
)

# What a web process does on POST /tasks, up to the moment at which it dies.
_SUBMIT_AND_DIE = """
import os, signal, sys
import django
django.setup()
from inference import dispatch
from inference.api.submission import build_task
from inference.api.task_serializers import submission_validator
from inference.lifecycle import submit

body = {"model": sys.argv[1], "prompt": sys.argv[2], "max_tokens": 8}
task = build_task("local", submission_validator().run_validation(body), None)
print(task.pk, flush=True)
dispatch.enqueue_soon = lambda messages: os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.readline()
submit.submit([task])
"""


def kill_gpu_child(service: RunningService) -> None:
    """The pool process that owns the GPU, as a crash in native code would end it."""
    kill(service.gpu_child())


def kill_gpu_worker(service: RunningService) -> None:
    """The parent of the pool process; serve ends the child and starts both again."""
    kill(service.pid(GPU_WORKER))


def kill_api_worker(service: RunningService) -> None:
    """The worker with all its threads."""
    kill(service.pid(API_WORKER))


def kill_default_worker(service: RunningService) -> None:
    """The worker of webhooks, downloads and sweeps."""
    kill(service.pid(DEFAULT_WORKER))


def empty_valkey(service: RunningService) -> None:
    """Valkey dies, and what serve starts in its place finds no data."""
    shutil.rmtree(service.var_dir / "valkey" / "appendonlydir")
    kill(service.pid(VALKEY))


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def held_back(path: Path) -> Iterator[None]:
    """A file that others wait for when they open it; nobody has it open.

    The kernel lets them wait for 45 s, and tells the one who holds the lease.
    """
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with path.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    signal.signal(signal.SIGIO, before)


def waits_for_file(pid: int) -> bool:
    """Whether the process waits for a file that is held back."""
    return "break_lease" in read_proc(Path(f"/proc/{pid}/wchan"))


class DyingWeb:
    """A web process that dies between the commit of a task and the message to its worker."""

    def __init__(self, service: RunningService, model: str, prompt: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SUBMIT_AND_DIE, model, prompt],
            cwd=ROOT,
            env={**service.env, "DJANGO_SETTINGS_MODULE": "sopllm.settings"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.task_id = self._process.stdout.readline().strip()

    def submit_and_die(self) -> None:
        """Save the task and be killed."""
        self._process.communicate("go\n")
        assert self._process.returncode == -signal.SIGKILL, "the submission failed"


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send the signal, and wait until the process is gone."""
    os.kill(pid, number)
    wait_for(lambda: not is_alive(pid))


def what_is_wrong(report: dict[str, Any]) -> str | None:
    """Why this task did not end completed exactly once; None when it did."""
    task = report["task"]
    outcomes = [attempt["outcome"] for attempt in report["attempts"]]
    if task["status"] != "completed":
        return f"{task['task_id']} is {task['status']}: {task['error']}"
    if outcomes.count("completed") != 1 or not set(outcomes) <= {"completed", "lost"}:
        return f"{task['task_id']} has the attempts {outcomes}"
    if not task["result"]["text"]:
        return f"{task['task_id']} has no text"
    return None


def worker_of_attempt(service: RunningService, task_id: str, number: int) -> int:
    """The process that runs the task's nth attempt, once it runs."""

    def running() -> list[str]:
        attempts = service.report(task_id)["attempts"]
        return [
            attempt["worker"]
            for attempt in attempts
            if attempt["number"] == number and attempt["outcome"] == "running"
        ]

    _host, pid, _start_time = wait_for(running, 60)[0].split(":")
    return int(pid)


def worker_that_answers(service: RunningService, task_id: str, number: int) -> int:
    """The process that runs the task's nth attempt, once its answer has begun."""
    wait_for(lambda: service.attempt_with_text(task_id) == number, 60)
    return worker_of_attempt(service, task_id, number)
