"""Keeps a set of child processes running until the user stops them, and leaves none behind.

Each child leads a process group of its own and writes to its own log file. One that dies is started
again, at once the first time and with growing delays when it keeps dying. The kernel kills the
children when this process dies, so not even `kill -9` of it leaves them running.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import threading
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import SubprocessError

STEADY_SECONDS = 10.0  # A process that has run this long has started successfully.
MAX_DELAY_SECONDS = 30.0
SAME_SIGNAL_SECONDS = 0.5  # A closing terminal, or `timeout`, sends its signal twice.
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to keep running.

    `stop_signals` are sent to the process alone, each with the seconds to wait for its exit; then
    the whole process group is killed. `inherited` are open file descriptors to pass on.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    nice: int = 0
    inherited: Sequence[int] = ()
    stop_signals: Sequence[tuple[signal.Signals, float]] = ((signal.SIGTERM, 3.0),)

    @property
    def log_name(self) -> str:
        """The output's file in the log directory."""
        return f"{self.name.replace(' ', '-')}.log"


class StoppingError(Exception):
    """The supervisor is stopping: nothing more can be started or waited for."""


class Supervisor:
    """Runs processes in the order they were started; stops them in the reverse order.

    `run` has to be called in the main thread, since a child dies with the thread that forked it.
    `start_up`, plain blocking code in a second thread, calls `start` and `wait_until`.
    """

    def __init__(self, log_dir: Path, say: Callable[[str], None]) -> None:
        self.log_dir = log_dir
        self.say = say
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._is_stopping = threading.Event()
        self._stopped_at = 0.0
        self._failure: BaseException | None = None
        self._phases: list[list[ProcessRunner]] = []

    def run(self, start_up: Callable[[], None]) -> None:
        """Run `start_up`, stay until SIGINT, SIGTERM or SIGHUP; raise what `start_up` raised."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._on_stop_signal)
        # A daemon thread, so that a start-up that still waits does not delay the stop.
        thread = threading.Thread(target=self._run_start_up, args=(start_up,), daemon=True)
        thread.start()
        self._loop.run_until_complete(self._stay())
        thread.join(timeout=1.0)
        if self._failure is not None:
            raise self._failure

    def start(self, *specs: ProcessSpec) -> None:
        """From `start_up`: start these together; what is started last is stopped first."""
        self.check()
        asyncio.run_coroutine_threadsafe(self._start(specs), self._loop).result()

    def wait_until(self, is_ready: Callable[[], bool], timeout_seconds: float) -> bool:
        """From `start_up`: whether `is_ready` was true in time; StoppingError while stopping."""
        deadline = time.monotonic() + timeout_seconds
        while not is_ready():
            self.check()
            if time.monotonic() > deadline:
                return False
            self._is_stopping.wait(0.1)
        return True

    def check(self) -> None:
        """Raise StoppingError while stopping."""
        if self._is_stopping.is_set():
            raise StoppingError

    async def _start(self, specs: Sequence[ProcessSpec]) -> None:
        self.check()
        self._phases.append([ProcessRunner(spec, self.log_dir, self.say) for spec in specs])

    async def _stay(self) -> None:
        await self._stopping.wait()
        for runners in reversed(self._phases):
            await asyncio.gather(*(runner.stop() for runner in reversed(runners)))

    def _run_start_up(self, start_up: Callable[[], None]) -> None:
        try:
            start_up()
        except StoppingError:
            pass
        except BaseException as exc:  # noqa: BLE001 - raised again by `run`
            self._failure = exc
            self._loop.call_soon_threadsafe(self._stop)

    def _on_stop_signal(self) -> None:
        if not self._is_stopping.is_set():
            self.say("Stopping (Ctrl-C again: at once)")
            self._stop()
        elif time.monotonic() - self._stopped_at > SAME_SIGNAL_SECONDS:
            for runner in (runner for runners in self._phases for runner in runners):
                runner.kill()

    def _stop(self) -> None:
        self._stopped_at = time.monotonic()
        self._is_stopping.set()
        self._stopping.set()


class ProcessRunner:
    """Keeps one process running; used on the event loop alone."""

    def __init__(self, spec: ProcessSpec, log_dir: Path, say: Callable[[str], None]) -> None:
        self.spec = spec
        self.log_path = log_dir / spec.log_name
        self.say = say
        self._process: Process | None = None
        self._is_stopping = False
        # Keep the log of the run before this one, and start an empty one.
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        self._task = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """Stop the process with its own signals, then kill what is left of its group."""
        self._is_stopping = True
        process = self._process
        if process is None:
            self._task.cancel()
        else:
            for number, seconds in self.spec.stop_signals:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), seconds)
                    break
            self.kill()
        await asyncio.wait([self._task])

    def kill(self) -> None:
        """Kill the whole process group, for good."""
        self._is_stopping = True
        if self._process is not None:
            kill_group(self._process.pid)

    async def _keep_running(self) -> None:
        num_quick_deaths = 0
        while not self._is_stopping:
            started = time.monotonic()
            try:
                how = describe_exit(await self._run_once())
            except (OSError, SubprocessError) as exc:
                how = str(exc)
            if self._is_stopping:
                return
            is_quick = time.monotonic() - started < STEADY_SECONDS
            num_quick_deaths = num_quick_deaths + 1 if is_quick else 0
            delay = restart_delay(num_quick_deaths)
            if num_quick_deaths < 2:
                self.say(f"{self.spec.name} died ({how}), starting it again")
            else:
                self.say(
                    f"{self.spec.name} exits at once, {num_quick_deaths} times so far ({how}); "
                    f"see {self.log_path}; next try in {delay:.0f} s"
                )
            await asyncio.sleep(delay)

    async def _run_once(self) -> int:
        """Run the process to its end; returns its exit status, minus the signal that killed it."""
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                env={**os.environ, **self.spec.env},
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                start_new_session=True,
                pass_fds=tuple(self.spec.inherited),
                preexec_fn=child_set_up(self.spec.nice),
            )
        status = await self._process.wait()
        kill_group(self._process.pid)
        self._process = None
        return status


def child_set_up(nice: int) -> Callable[[], None]:
    """What a child runs between fork and exec: nothing that takes a lock, for other threads."""
    parent = os.getpid()

    def set_up() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        if nice:
            os.nice(nice)

    return set_up


def kill_group(leader: int) -> None:
    """Kill the process group of a child; members of it can outlive the child."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def restart_delay(num_quick_deaths: int) -> float:
    """Seconds to wait before the next start: none after the first death, then 1, 2, 4, ... 30."""
    if num_quick_deaths < 2:
        return 0.0
    return min(2.0 ** (num_quick_deaths - 2), MAX_DELAY_SECONDS)


def describe_exit(status: int) -> str:
    """`SIGKILL` for -9, `exit status 1` for 1."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # Real-time signals have no name.
        return f"signal {-status}"
