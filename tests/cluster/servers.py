"""Valkey and PostgreSQL, real ones, which keep their data when they are restarted."""

import os
import pwd
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import redis

from benchmarks.running_service import wait_for
from sopllm.processes import valkey_executable
from sopllm.supervisor import child_set_up

VALKEY_PORT, POSTGRES_PORT = 16379, 15432
POSTGRES_USER = "postgres"


class Server:
    """A process that listens at an address."""

    def __init__(
        self, command: list[str], log: Path, answers: Callable[[], object], user: str | None = None
    ) -> None:
        self._command = command
        self._log = log
        self._answers = answers
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
                preexec_fn=child_set_up(0),  # noqa: PLW1509 - it takes no locks
            )
        wait_for(self._answers)

    def stop(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None


class Valkey(Server):
    """With an append-only file, as `make run` starts it."""

    def __init__(self, address: str, var_dir: Path) -> None:
        self.url = f"redis://{address}:{VALKEY_PORT}/0"
        data_dir = var_dir / "valkey"
        data_dir.mkdir()
        options = ["--bind", address, "--port", str(VALKEY_PORT), "--protected-mode", "no"]
        files = ["--dir", str(data_dir), "--appendonly", "yes", "--save", ""]
        command = [str(valkey_executable()), *options, *files]
        super().__init__(command, var_dir / "valkey.log", self._pings)

    def _pings(self) -> Any:
        try:
            with redis.Redis.from_url(self.url) as client:
                return client.ping()
        except redis.RedisError:
            return False


class Postgres(Server):
    """Debian's, with a folder of its own; the hosts need no password."""

    def __init__(self, address: str, var_dir: Path) -> None:
        self.url = f"postgres://{POSTGRES_USER}@{address}:{POSTGRES_PORT}/postgres"
        programs = postgres_programs()
        assert programs is not None
        data_dir = var_dir / "postgres"
        data_dir.mkdir()
        os.chown(data_dir, pwd.getpwnam(POSTGRES_USER).pw_uid, -1)
        options = ["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run(
            [programs / "initdb", "-D", data_dir, *options],
            user=POSTGRES_USER,
            group=POSTGRES_USER,
            extra_groups=[],
            cwd="/",
            stdout=subprocess.DEVNULL,
            check=True,
        )
        with (data_dir / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {address}/24 trust\n")
        settings = {
            "listen_addresses": address,
            "port": str(POSTGRES_PORT),
            "unix_socket_directories": str(data_dir),
            "fsync": "off",
        }
        command = [str(programs / "postgres"), "-D", str(data_dir)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        super().__init__(command, var_dir / "postgres.log", self._selects, POSTGRES_USER)

    def _selects(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def postgres_programs() -> Path | None:
    """Where Debian has the newest server; None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None
