"""A host: namespaces of its own for network, processes and name, and a clock of its own."""

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.running_service import ROOT, children, wait_for
from sopllm.supervisor import child_set_up
from tests.cluster.network import PROGRAMS, Cable, Network, run

# Its first process names it, waits for its network device, and goes on as the supervisor.
_BOOT = """
hostname "$1" && read -r _ && ip link set lo up && ip address add "$2/24" dev "$3" &&
ip link set "$3" up && shift 3 && exec "$@"
"""
_BEGIN = """
import signal, sys
import django
django.setup()
from django.db import connection, transaction
with transaction.atomic(), connection.cursor() as cursor:
    cursor.execute(sys.argv[1])
    print("done", flush=True)
    signal.pause()
"""
_NAMESPACES = ("--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")


class Host:
    """Runs some processes of the service at an address of the network."""

    def __init__(
        self,
        name: str,
        address: str,
        network: Network,
        var_dir: Path,
        env: dict[str, str],
        processes: Sequence[str],
        clock_library: Path,
    ) -> None:
        self.name = name
        self.address = address
        self.var_dir = var_dir / name
        self.var_dir.mkdir()
        self._network = network
        self._processes = processes
        self._clock = self.var_dir / "clock"
        self.set_clock_ahead(0)
        self._env = {
            **env,
            "VAR_DIR": str(self.var_dir),
            "SERVER_HOST": address,
            "LD_PRELOAD": str(clock_library),
            "CLOCK_OFFSET_FILE": str(self._clock),
        }
        self._init: subprocess.Popen[bytes] | None = None
        self._cable: Cable | None = None

    @property
    def cable(self) -> Cable:
        assert self._cable is not None, "not started"
        return self._cable

    def start(self) -> None:
        """Have the host boot, and its supervisor start its processes."""
        device = f"sop-{self.name}"
        self._cable = self._network.attach(device, self.address)
        command = [
            *(PROGRAMS["unshare"] or "unshare", *_NAMESPACES, "sh", "-c", _BOOT, "boot"),
            *(self.name, self.address, device),
            *(sys.executable, "-m", "tests.cluster.supervised", *self._processes),
        ]
        with (self.var_dir / "output").open("ab") as output:
            self._init = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=child_set_up(0),  # noqa: PLW1509 - it takes no locks
            )
        pid, ours = self._init.pid, Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{pid}/ns/net").readlink() != ours)
        run("ip", "link", "set", device, "netns", str(pid))
        assert self._init.stdin is not None
        self._init.stdin.write(b"\n")
        self._init.stdin.close()

    def begin_transaction(self, statement: str) -> None:
        """Have a process of it run a statement in a transaction that does not end."""
        assert self._init is not None, "not started"
        [first] = children(self._init.pid)
        command = [
            *(PROGRAMS["nsenter"] or "nsenter", "--all", "--wd", "--target", str(first)),
            *(sys.executable, "-c", _BEGIN, statement),
        ]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self._env,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"

    def kill(self) -> None:
        """End all its processes by SIGKILL: its kernel closes their connections."""
        if self._init is None:
            return
        for pid in children(self._init.pid):  # the first of its processes, whose end is all others'
            os.kill(pid, signal.SIGKILL)
        self._init.wait()
        self._init = None
        self._network.detach(self.cable)

    def cut_power(self) -> None:
        """End all at once; nobody is told that its connections are no more."""
        self.cable.is_cut = True
        self.kill()

    def cut_off(self, seconds: float) -> None:
        """No packet comes or goes for so long."""
        self.cable.is_cut = True
        time.sleep(seconds)
        self.cable.is_cut = False

    @contextmanager
    def slow(self, delay_seconds: float, loss: float) -> Iterator[None]:
        """What it sends comes later, or in part not at all."""
        self.cable.delay_seconds, self.cable.loss = delay_seconds, loss
        try:
            yield
        finally:
            self.cable.delay_seconds, self.cable.loss = 0.0, 0.0

    def set_clock_ahead(self, seconds: int) -> None:
        """Set its wall clock, which may jump: `seconds` before that of all others."""
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(struct.pack("l", seconds))

    def log_tails(self, num_lines: int = 40) -> str:
        """The last lines of its supervisor and of each process, for a test that failed."""
        paths = [self.var_dir / "output", *sorted((self.var_dir / "log").glob("*.log"))]
        tails = [(path, path.read_text().splitlines()[-num_lines:]) for path in paths]
        return "".join(
            f"\n--- {self.name}: {path.name}\n" + "\n".join(lines) for path, lines in tails
        )
