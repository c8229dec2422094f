"""A PostgreSQL of its own on a Unix socket, which is started again whenever it dies."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks import faults
from benchmarks.running_service import descendants, wait_for
from sopllm.supervisor import child_set_up

_RESTART_SECONDS = 0.2
_START_SECONDS = 60.0


class PostgresServer:
    """In a folder that goes with it; `options` are settings of postgresql.conf.

    The server refuses to run as root: it then belongs to the user `postgres` of Debian's package.
    """

    def __init__(self, **options: str) -> None:
        self._bin = _executables()
        self.folder = Path(tempfile.mkdtemp(prefix="sopllm-pg-", dir="/tmp"))
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")
        given = {"listen_addresses": "", "unix_socket_directories": str(self.folder), **options}
        settings = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        self._command = [str(self._bin / "postgres"), "-D", data, *settings]
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        # The server dies with the thread that has started it.
        self._thread = threading.Thread(target=self._keep_running)
        self._thread.start()
        wait_for(self.is_ready, _START_SECONDS, every_seconds=0.1)

    def create(self, database: str) -> str:
        """Make a database; its URL."""
        self._run("createdb", "-h", str(self.folder), "-U", "postgres", database)
        return self.url_of(database)

    def url_of(self, database: str) -> str:
        """As DATABASE_URL takes it."""
        return f"postgres://postgres@{quote(str(self.folder), safe='')}/{database}"

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        return wait_for(lambda: self._process).pid

    def processes(self) -> list[int]:
        """The postmaster and all of its backends."""
        return [self.pid, *descendants(self.pid)]

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        command = [str(self._bin / "pg_isready"), "-q", "-h", str(self.folder)]
        return subprocess.run(command, check=False).returncode == 0

    def kill(self) -> None:
        """The postmaster alone: its backends end when they see that it is gone."""
        faults.kill(self.pid)

    def close(self) -> None:
        """Stop it at once with all backends, and remove its folder."""
        self._stopping.set()
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
        self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep_running(self) -> None:
        # One that starts before the last backend of its predecessor has ended exits at once.
        while not self._stopping.wait(_RESTART_SECONDS):
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    start_new_session=True,
                    preexec_fn=child_set_up(0),  # noqa: PLW1509 - it takes no locks
                    **self._as_user,
                )
            self._process.wait()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            **self._as_user,
        )


def _executables() -> Path:
    """The folder of the newest server that is installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    if not folders:
        raise SystemExit("Needs PostgreSQL: apt install postgresql")
    return folders[-1]
