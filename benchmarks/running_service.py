"""The whole service in a child process, with a folder and ports of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import redis

from sopllm.supervisor import child_set_up

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = "smollm2-135m-instruct"
MINILM = "all-minilm-l6-v2"
# Many seconds of work: the model counts as far as max_tokens lets it.
COUNTING: dict[str, Any] = {"prompt": "Count from 1 to 1000: 1, 2, 3,", "temperature": 0}
STARTED = "Ctrl-C stops everything."
START_LIMIT_SECONDS = 90.0
STOP_LIMIT_SECONDS = 20.0

# Part of the command line of each process that serve starts.
WEB, GPU_WORKER, API_WORKER = "sopllm.asgi", "gpu@%h", "api@%h"
DEFAULT_WORKER, EMBEDDINGS_WORKER = "default@%h", "embeddings@%h"
FLOWER_USER, FLOWER_PASSWORD = "flower", "of the tests"
BEAT, FLOWER, VALKEY = " beat ", " flower ", "valkey-server"
# Set even where empty, so that neither the environment nor `.env` gets a say.
_OWN_VARIABLES = {
    "APP_ENV": "local",
    "SERVER_HOST": "127.0.0.1",
    "DATABASE_URL": "",
    "REDIS_URL": "",
    "MODELS_DIR": "",
    "LEASE_SECONDS": "",
    "SWEEP_INTERVAL_SECONDS": "",
    "RING_AGAIN_SECONDS": "",
    "LANGFUSE_PUBLIC_KEY": "",
    "LANGFUSE_SECRET_KEY": "",
    "WEBHOOK_SECRETS": "",
    "WEBHOOK_ALLOWED_HOSTS": "",
    "WEBHOOK_ALLOW_HTTP": "",
    "WEBHOOK_RETRY_SECONDS": "",
    # PyTorch takes seconds of both cores and 400 MB: only where embeddings are measured.
    "DEFAULT_EMBEDDING_MODEL": "none",
    "EMBEDDING_TIMEOUT_SECONDS": "",
    "EMBEDDING_MAX_MODELS": "",
    "EMBEDDING_MAX_BATCH_TOKENS": "",
    "EMBEDDING_DEVICE": "",
    # As `make` does: what is compiled in each process costs it memory, and time to start.
    "PYTHONDONTWRITEBYTECODE": "",
    # A process that has loaded an embedding model has set this for itself.
    "HF_HUB_OFFLINE": "",
    "FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{FLOWER_PASSWORD}",
}


class RunningService:
    """`manage.py serve`, a client of its API, and a view of its processes.

    `variables` are settings that differ from the defaults.
    """

    def __init__(self, **variables: str) -> None:
        # Short, because a Unix socket's path may have 107 bytes.
        self.var_dir = Path(tempfile.mkdtemp(prefix="sopllm-", dir="/tmp"))
        self.port, self.flower_port = free_port(), free_port()
        own = {
            "VAR_DIR": str(self.var_dir),
            "SERVER_PORT": str(self.port),
            "FLOWER_PORT": str(self.flower_port),
        }
        self.env = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "sopllm.settings",
            **_OWN_VARIABLES,
            **own,
            **variables,
        }
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(
            base_url=f"{self.base_url}/api/v1",
            timeout=httpx.Timeout(70, connect=5),
            trust_env=False,
        )
        self._serve: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Start it, and wait until it says that it has started."""
        self._serve = self.spawn(*arguments)
        wait_for(self._has_started, START_LIMIT_SECONDS)

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `manage.py serve` without waiting; it and its children die with this process."""
        with self.output_path.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "manage.py", "serve", *arguments],
                cwd=ROOT,
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=child_set_up(0),  # noqa: PLW1509 - it takes no locks
            )

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Stop it as Ctrl-C does; returns the exit status."""
        serve = self.serve
        serve.send_signal(number)
        try:
            return serve.wait(STOP_LIMIT_SECONDS)
        finally:
            serve.kill()

    def close(self) -> None:
        """Stop whatever runs, and remove the folder."""
        self.http.close()
        if self._serve is not None and self._serve.poll() is None:
            self.stop()
        shutil.rmtree(self.var_dir, ignore_errors=True)

    def _has_started(self) -> bool:
        if self.serve.poll() is not None:
            raise RuntimeError(f"serve ended:\n{self.output()}")
        return STARTED in self.output()

    @property
    def serve(self) -> subprocess.Popen[bytes]:
        assert self._serve is not None, "not started"
        return self._serve

    @property
    def output_path(self) -> Path:
        return self.var_dir / "output"

    def output(self) -> str:
        """What serve has printed."""
        return self.output_path.read_text()

    def log_tails(self, num_lines: int = 40) -> str:
        """The last lines of serve and of each process, for a test that failed."""
        paths = [self.output_path, *sorted((self.var_dir / "log").glob("*.log"))]
        tails = [(path, path.read_text().splitlines()[-num_lines:]) for path in paths]
        return "".join(f"\n--- {path.name}\n" + "\n".join(lines) for path, lines in tails)

    def processes(self) -> list[int]:
        """Every process of the service: serve, what it started, and their children."""
        return [self.serve.pid, *descendants(self.serve.pid)]

    def pids(self, mark: str) -> list[int]:
        """The processes that serve started with this in their command line."""
        return [pid for pid in children(self.serve.pid) if mark in command_line(pid)]

    def pid(self, mark: str) -> int:
        """The first of them, waiting for one that is being started again."""
        return wait_for(lambda: self.pids(mark))[0]

    def gpu_child(self) -> int:
        """The pool process that owns the GPU."""
        return wait_for(lambda: children(self.pid(GPU_WORKER)))[0]

    def embeddings_child(self) -> int:
        """The pool process that holds the embedding models."""
        return wait_for(lambda: children(self.pid(EMBEDDINGS_WORKER)))[0]

    def register_echo(self, name: str = "echo", delay_ms: float = 0) -> None:
        """Register a model that says the prompt back, a word each `delay_ms`."""
        body = {"name": name, "provider": "echo", "config": {"delay_ms": delay_ms}}
        self.http.post("/models/register", json=body).raise_for_status()

    def submit(self, prompt: str, model: str = SMOLLM2, **fields: Any) -> str:
        """Submit a task; returns its id."""
        response = self.http.post("/tasks", json={"model": model, "prompt": prompt, **fields})
        assert response.status_code == 201, response.text
        return str(response.json()["task_id"])

    def task(self, task_id: str) -> dict[str, Any]:
        """The task as it is."""
        return self._get(f"/tasks/{task_id}")

    def model(self, name: str) -> dict[str, Any]:
        """The model as it is."""
        return self._get(f"/models/{name}")

    def report(self, task_id: str) -> dict[str, Any]:
        """The task's report."""
        return self._get(f"/tasks/{task_id}/report")

    def ended(self, task_id: str, limit_seconds: float = 30) -> dict[str, Any]:
        """The task once it has ended."""
        give_up_at = time.monotonic() + limit_seconds
        while (left := give_up_at - time.monotonic()) > 0:
            task = self._get(f"/tasks/{task_id}?wait={min(left, 5):.2f}")
            if task["status"] not in ("pending", "processing"):
                return task
        raise TimeoutError(f"Not ended within {limit_seconds} s: {self.task(task_id)}")

    def processing(self, task_id: str, limit_seconds: float = 20) -> dict[str, Any]:
        """The task once a worker has claimed it."""

        def claimed() -> dict[str, Any] | None:
            task = self.task(task_id)
            return task if task["status"] != "pending" else None

        return wait_for(claimed, limit_seconds)

    def drained(self, bodies: list[dict[str, Any]], limit_seconds: float = 120) -> list[str]:
        """Submit a batch, and wait until no task is left; their ids."""
        response = self.http.post("/tasks/batch", json=bodies).raise_for_status()
        # Asking takes time from the tasks.
        wait_for(self._is_idle, limit_seconds, every_seconds=0.1)
        return [task["task_id"] for task in response.json()]

    def _is_idle(self) -> bool:
        """Whether no task is left; /monitor/queue would tell of a moment ago."""
        lists = [
            self._get(f"/tasks?status={status}&limit=1")["results"]
            for status in ("pending", "processing")
        ]
        return not any(lists)

    def num_deltas(self, task_id: str) -> int:
        """Deltas that the task has written to its stream, and one more for its end."""
        with redis.Redis(unix_socket_path=str(self.var_dir / "valkey.sock")) as valkey:
            return int(str(valkey.xlen(f"task:{task_id}:stream")))

    def attempt_with_text(self, task_id: str) -> int:
        """The attempt that has written to the task's stream last; 0 if none has."""
        with redis.Redis(unix_socket_path=str(self.var_dir / "valkey.sock")) as valkey:
            last: Any = valkey.xrevrange(f"task:{task_id}:stream", count=1)
        return int(last[0][0].partition(b"-")[0]) if last else 0

    def generating(self, task_id: str) -> dict[str, Any]:
        """The task once its answer has begun."""
        wait_for(lambda: self.num_deltas(task_id) > 1)
        return self.task(task_id)

    def _get(self, path: str) -> dict[str, Any]:
        response = self.http.get(path)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer


def wait_for(
    get: Callable[[], T | None], limit_seconds: float = 40.0, every_seconds: float = 0.01
) -> T:
    """What `get` returns once that is true; TimeoutError when it never is."""
    give_up_at = time.monotonic() + limit_seconds
    while not (value := get()):
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"Nothing within {limit_seconds} s: {get}")
        time.sleep(every_seconds)
    return value


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def children(pid: int) -> list[int]:
    """The living child processes."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for path in listed for child in read_proc(path).split()]
    return sorted(child for child in found if is_alive(child))


def descendants(pid: int) -> list[int]:
    """The children, their children, and so on."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    status = read_proc(Path(f"/proc/{pid}/stat"))
    return bool(status) and status.rpartition(")")[2].split()[0] != "Z"


def command_line(pid: int) -> str:
    """The arguments of a process, joined by spaces."""
    return read_proc(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")


def mapped_files(pid: int) -> str:
    """The libraries in a process's memory, as the kernel lists them."""
    return read_proc(Path(f"/proc/{pid}/maps"))


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    lines = read_proc(Path(f"/proc/{pid}/status")).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)


def proportional_bytes(pid: int) -> int:
    """Memory of a process in RAM, where a page that several share counts once in all (PSS)."""
    lines = read_proc(Path(f"/proc/{pid}/smaps_rollup")).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def age_seconds(pid: int) -> float:
    """How long a process has lived."""
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - started / os.sysconf("SC_CLK_TCK")


def read_proc(path: Path) -> str:
    """A file of /proc; empty when the process is gone, or not ours."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
