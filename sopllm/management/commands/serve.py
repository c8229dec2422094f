"""`manage.py serve`: the whole service on one machine, from an empty checkout to a first answer."""

import contextlib
import fcntl
import os
import secrets
import socket
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import redis
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, CommandError, call_command
from django.db import DatabaseError

from monitoring.redis.client import client
from monitoring.streams.delta_stream import read_deltas
from presets import catalogue
from sopllm import processes
from sopllm.access import exposure
from sopllm.access.identity import is_loopback
from sopllm.supervisor import StoppingError, Supervisor

VALKEY_TIMEOUT_SECONDS = 60  # A long append-only file is read back first.
READY_TIMEOUT_SECONDS = 120
DEMO_TIMEOUT_SECONDS = 120
MAX_SOCKET_PATH_BYTES = 107
DEMO_TASK = {
    "model": "smollm2-135m-instruct",
    "prompt": "What is the capital of France? Answer in one short sentence.",
    "max_tokens": 64,
    "temperature": 0,
}


class Command(BaseCommand):
    help = "Start everything the service needs on this machine, and stay in front until Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--no-demo", action="store_true", help="submit no first prompt")

    def handle(self, *args: Any, **options: Any) -> None:
        # The database, Valkey's file and the logs have what other users must not read.
        os.umask(0o077)
        with contextlib.suppress(PermissionError):  # the folder is another user's
            settings.VAR_DIR.chmod(0o700)
        with only_one_serve():
            listener = listen(settings.SERVER_HOST, settings.SERVER_PORT, "SERVER_PORT")
            listen("127.0.0.1", settings.FLOWER_PORT, "FLOWER_PORT").close()
            supervisor = Supervisor(settings.VAR_DIR / "log", self.say)
            with_demo = not options["no_demo"]
            supervisor.run(lambda: self.start_up(supervisor, listener, with_demo=with_demo))

    def start_up(self, supervisor: Supervisor, listener: socket.socket, *, with_demo: bool) -> None:
        """Start the processes in order, each when what it needs is ready, and print progress."""
        started = time.monotonic()
        self.say(f"{settings.APP_NAME} ({settings.APP_ENV})")
        if settings.EMBEDDED_VALKEY:
            self.start_valkey(supervisor)
        self.check_redis(supervisor)
        self.migrate()
        if not is_loopback(settings.SERVER_HOST) and not exposure.has_keys():
            raise CommandError(exposure.NO_KEY)
        self.make_admin()
        self.load_presets()
        call_command("register_packaged_models", verbosity=0)
        self.row("Starting", "web; gpu, api, default and embeddings workers; beat, flower")
        supervisor.start(*processes.application(listener))
        is_up = supervisor.wait_until(is_ready, READY_TIMEOUT_SECONDS)
        supervisor.start(processes.flower())
        if is_up:
            self.row("Ready", f"after {time.monotonic() - started:.1f} s")
            self.show_demo(supervisor, with_demo)
        else:
            self.row("Not ready", f"after {READY_TIMEOUT_SECONDS} s: {base_url()}/readyz says why")
        self.show_addresses()

    def start_valkey(self, supervisor: Supervisor) -> None:
        path = settings.VALKEY_SOCKET
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise CommandError(f"{path} is too long for a socket: set VAR_DIR to a shorter folder.")
        path.unlink(missing_ok=True)
        supervisor.start(processes.valkey())

    def check_redis(self, supervisor: Supervisor) -> None:
        if not supervisor.wait_until(answers_ping, VALKEY_TIMEOUT_SECONDS):
            hint = "see valkey.log" if settings.EMBEDDED_VALKEY else "check REDIS_URL"
            raise CommandError(f"Redis gives no answer after {VALKEY_TIMEOUT_SECONDS} s: {hint}.")
        embedded = f"embedded Valkey, {shown(settings.VALKEY_SOCKET)}"
        self.row("Redis", embedded if settings.EMBEDDED_VALKEY else "connected")

    def migrate(self) -> None:
        try:
            call_command("migrate", verbosity=0, interactive=False)
        except DatabaseError as exc:
            raise CommandError(f"The database cannot be used ({exc}): check DATABASE_URL.") from exc
        self.row("Database", "migrated")

    def load_presets(self) -> None:
        """Print what is wrong with the files of presets; no problem there stops the start."""
        for problem in catalogue.load().problems:
            self.row("Presets", problem)

    def make_admin(self) -> None:
        """On a first local run, make the user `admin` with a password of its own."""
        users = get_user_model().objects
        if settings.APP_ENV != "local" or users.filter(is_superuser=True).exists():
            return
        password = secrets.token_urlsafe(12)
        path = settings.VAR_DIR / "admin_password"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(f"{password}\n")
        users.create_superuser(username="admin", password=password)
        self.row("Admin", f"user admin, password in {shown(path)}")

    def show_demo(self, supervisor: Supervisor, with_demo: bool) -> None:
        """Submit one prompt and print the answer as it streams in; a failure stops nothing."""
        if not with_demo:
            self.row("First prompt", "skipped (--no-demo)")
            return
        try:
            self.run_demo(supervisor)
        except StoppingError:
            raise
        except httpx.HTTPStatusError as exc:
            self.row("First prompt", f"skipped: {error_message(exc.response)}")
        except (httpx.HTTPError, redis.RedisError, OSError) as exc:
            self.row("First prompt", f"no answer ({exc}); the service runs on")

    def run_demo(self, supervisor: Supervisor) -> None:
        self.row("First prompt", str(DEMO_TASK["prompt"]))
        task_id = call_api("POST", "tasks", DEMO_TASK)["task_id"]
        self.write("Answer".ljust(14))
        for delta in read_deltas(task_id, timeout_seconds=DEMO_TIMEOUT_SECONDS):
            supervisor.check()
            self.write(delta)
        task = call_api("GET", f"tasks/{task_id}")
        self.say("" if task["status"] == "completed" else f"{task['status']}: {task['error']}")

    def show_addresses(self) -> None:
        self.say("")
        self.row("Monitor", f"{base_url()}/")
        self.row("API", f"{base_url()}/api/v1/")
        self.row("Docs", f"{base_url()}/docs")
        self.row("Admin", f"{base_url()}/admin/")
        flower = f"http://127.0.0.1:{settings.FLOWER_PORT}/"
        if "FLOWER_BASIC_AUTH" not in os.environ:
            flower += f", user flower, password in {shown(settings.VAR_DIR)}/flower_password"
        self.row("Flower", flower)
        self.row("Logs", f"{shown(settings.VAR_DIR)}/log/")
        self.say("Ctrl-C stops everything.")

    def row(self, title: str, text: str) -> None:
        self.say(f"{title:<14}{text}")

    def say(self, line: str) -> None:
        self.write(f"{line}\n")

    def write(self, text: str) -> None:
        """Print at once; a terminal that was closed, which is why we stop, is no error."""
        with contextlib.suppress(OSError):
            self.stdout.write(text, ending="")
            self.stdout.flush()


@contextlib.contextmanager
def only_one_serve() -> Iterator[None]:
    """Hold this checkout's lock; the kernel releases it however this process ends."""
    settings.VAR_DIR.mkdir(parents=True, exist_ok=True)
    with (settings.VAR_DIR / "serve.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise CommandError("The service already runs in this checkout: stop it first.") from exc
        yield


def listen(host: str, port: int, variable: str) -> socket.socket:
    """A listening socket; CommandError with the variable to change if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as exc:
        raise CommandError(
            f"Port {port} on {host} cannot be used ({exc.strerror}): set {variable} to another one."
        ) from exc
    # Connections inherit the option. uvicorn sets TCP_NODELAY on its own sockets only; without
    # it each answer in two packets waits 40 ms for the client's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def answers_ping() -> bool:
    """Whether Redis answers, its data loaded."""
    try:
        return bool(client().ping())
    except redis.RedisError:
        return False


def is_ready() -> bool:
    """Whether /readyz sees the database, Redis and a worker of each kind."""
    try:
        components = httpx.get(f"{base_url()}/readyz", timeout=5, trust_env=False).json()
        return all(components["components"]["workers"].values())
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def call_api(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Call our own API without any proxy; raises httpx.HTTPStatusError on an error answer."""
    url = f"{base_url()}/api/v1/{path}"
    response = httpx.request(method, url, json=body, timeout=30, trust_env=False)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def error_message(response: httpx.Response) -> str:
    """The sentence in an error answer of our API."""
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError):
        return f"{response.status_code} {response.reason_phrase}"


def base_url() -> str:
    """Where the API answers on this machine, also when it is bound to every address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(  # noqa: S104 - it is read here
        settings.SERVER_HOST, settings.SERVER_HOST
    )
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.SERVER_PORT}"


def shown(path: Path) -> Path:
    """The path as a user would type it here."""
    return path.relative_to(settings.BASE_DIR) if path.is_relative_to(settings.BASE_DIR) else path
