"""Random kills under a load of all kinds of tasks; what is lost, there twice, or stands still.

    python -m benchmarks.chaos [--minutes 60] [--kills 1000] [--seed 1] [--sqlite]
        [--json FILE] [--logs FOLDER]

Starts the whole service with PostgreSQL and Valkey in folders of their own, kills a process with
SIGKILL every few seconds, waits at the end until everything has ended, and compares what clients
were promised with the rows. Ends with status 1 if anything was lost or doubled, or a task stood
still for more than a minute though a worker of its queue was there.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import django

from benchmarks.cloud import provider, register
from benchmarks.figures import keep, machine, options_parser
from benchmarks.mixed_load import CLOUD, SLOW_ECHO, Load
from benchmarks.postgres import PostgresServer
from benchmarks.running_service import (
    API_WORKER,
    BEAT,
    DEFAULT_WORKER,
    EMBEDDINGS_WORKER,
    GPU_WORKER,
    MINILM,
    VALKEY,
    WEB,
    RunningService,
    children,
    is_alive,
    proportional_bytes,
    wait_for,
)
from tests.webhook_receiver import Receiver, Reply, WebhookCall

CLIENTS = {"echo": 3, "cloud": 3, "local": 1, "structured": 1, "stream": 2, "conversation": 1}
CLIENTS |= {"embeddings": 1, "response": 2, "cancel": 1, "batch": 1}
MAX_STILL_SECONDS = 60.0
STILL = (
    "waited in line, max s",
    "without a living owner, max s",
    "though a worker was there, max s",
)
DRAIN_SECONDS = 600.0
MEMORY_SECONDS = 5.0
# How often of all kills each is killed, and by what the service is whole again: the first of that
# kind of work that was begun after the kill and succeeded. Workers of models take longest to start.
PROCESSES = {
    "GPU pool process": (2, "gpu attempt"),
    "GPU worker": (1, "gpu attempt"),
    "API worker": (2, "api attempt"),
    "default worker": (2, "webhook"),
    "embeddings worker": (1, "embeddings"),
    "web": (3, "request"),
    "Valkey": (2, "echo"),
    "beat": (2, ""),
    "PostgreSQL": (2, "echo"),
}
_MARKS = {"GPU worker": GPU_WORKER, "API worker": API_WORKER, "default worker": DEFAULT_WORKER}
_MARKS |= {"embeddings worker": EMBEDDINGS_WORKER, "web": WEB, "Valkey": VALKEY, "beat": BEAT}


@dataclass(slots=True)
class Run:
    """A service that is being killed, and what was seen of it."""

    service: RunningService
    load: Load
    postgres: PostgresServer | None
    kills: list[tuple[str, float]] = field(default_factory=list)
    memory_mb: list[tuple[float, float]] = field(default_factory=list)

    def pids(self, name: str) -> list[int]:
        """The living processes that it may be."""
        if name == "PostgreSQL":
            return [self.postgres.pid] if self.postgres and is_alive(self.postgres.pid) else []
        if name == "GPU pool process":
            return [child for pid in self.service.pids(GPU_WORKER) for child in children(pid)]
        return self.service.pids(_MARKS[name])

    def kill(self, rng: random.Random) -> None:
        """Kill one at random; of a kind that has none just now, another."""
        names, weights = list(PROCESSES), [weight for weight, _ in PROCESSES.values()]
        while True:
            [name] = rng.choices(names, weights)
            if pids := self.pids(name):
                self.kills.append((name, time.time()))
                os.kill(rng.choice(pids), signal.SIGKILL)
                return

    def measure_memory(self) -> None:
        """Of the service and its database, without the clients."""
        pids = self.service.processes() + (self.postgres.processes() if self.postgres else [])
        self.memory_mb.append((time.monotonic(), sum(map(proportional_bytes, pids)) / 2**20))

    def recoveries(self, name: str) -> list[float]:
        """Seconds from each kill to the end of the first work begun after it that succeeded."""
        done = sorted(self.load.successes[PROCESSES[name][1]], key=lambda each: each[1])
        found = []
        for _, at in (kill for kill in self.kills if kill[0] == name):
            ends = (end - at for begun_at, end in done if begun_at >= at)
            found += [seconds for seconds in [next(ends, None)] if seconds is not None]
        return found


class CountingReceiver(Receiver):
    """Keeps the ids of the webhooks of each task, and tells the load when one has come."""

    def __init__(self) -> None:
        self.ids: defaultdict[str, set[str]] = defaultdict(set)
        self.load: Load | None = None
        super().__init__()

    def answer(self, call: WebhookCall) -> Reply:
        self.ids[json.loads(call.body)["data"]["task_id"]].add(call.webhook_id)
        if self.load is not None:
            self.load.succeeded("webhook", time.time())
        return Reply()


def kill_at_random(run: Run, num_kills: int, seconds: float, seed: int, watch: Any) -> None:
    """Kills at the moments of a Poisson process, with a line of progress each minute."""
    rng = random.Random(seed)  # noqa: S311 (no secret)
    started = time.monotonic()
    moments = sorted(rng.uniform(0, seconds) for _ in range(num_kills))
    next_report = 60.0
    for moment in [*moments, seconds]:
        while (now := time.monotonic() - started) < moment:
            time.sleep(min(moment - now, 1.0))
            if now >= next_report:
                print(progress(run, now, watch), flush=True)
                next_report += 60
        if moment < seconds:
            run.kill(rng)


def progress(run: Run, seconds: float, watch: Any) -> str:
    load, memory = run.load, run.memory_mb[-1][1] if run.memory_mb else 0
    still = max(watch.stood_still.seconds.values(), default=0)
    ends = ", ".join(f"{num} {end}" for end, num in load.ends.most_common())
    return (
        f"{seconds / 60:.0f} min: {len(run.kills)} kills, {len(load.accepted)} tasks accepted, "
        f"{ends}; {len(load.batches)} batches; stood still at most {still:.0f} s; "
        f"{memory:.0f} MB; {len(load.wrong)} wrong"
    )


def keep_watching(run: Run, watch: Any, stopping: threading.Event) -> None:
    """Look at the rows each second, and at the memory now and then."""
    while not stopping.wait(1.0):
        watch.look()
        if not run.memory_mb or time.monotonic() - run.memory_mb[-1][0] > MEMORY_SECONDS:
            run.measure_memory()


def memory(samples: list[tuple[float, float]]) -> dict[str, Any]:
    """Megabytes: the median of each sixth of the run, and the slope over all but the first."""
    sixth = max(1, len(samples) // 6)
    parts = [samples[n * sixth : (n + 1) * sixth] for n in range(6)]
    later = samples[sixth:]
    slope = linear_regression(*zip(*later, strict=True)).slope if len(later) > 1 else 0.0
    medians = [round(median(mb for _, mb in part)) for part in parts if part]
    return {"medians of sixths": medians, "slope a minute": round(slope * 60, 2)}


def drain(run: Run, rows: Any) -> float:
    """Wait until nothing is left to do; the seconds it took."""
    started = time.monotonic()
    try:
        wait_for(lambda: rows.num_left() == 0, DRAIN_SECONDS, every_seconds=0.5)
    except TimeoutError:
        print(f"{rows.num_left()} rows have not ended after {DRAIN_SECONDS:.0f} s")
    # Events and log lines leave a process after the rows.
    time.sleep(2)
    return time.monotonic() - started


def rounded(longest: Any) -> dict[str, float]:
    return {kind: round(seconds, 1) for kind, seconds in longest.seconds.items()}


def table(run: Run) -> list[dict[str, Any]]:
    """What was killed how often, and how long recovery took."""
    lines = []
    for name in PROCESSES:
        times = run.recoveries(name)
        lines.append(
            {
                "process": name,
                "kills": sum(killed == name for killed, _ in run.kills),
                "recovery, median s": round(median(times), 1) if times else None,
                "recovery, max s": round(max(times), 1) if times else None,
            }
        )
    return lines


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run from start to drained; all figures."""
    with ExitStack() as stack:
        postgres = None
        variables = {"DEFAULT_EMBEDDING_MODEL": MINILM, "WEBHOOK_ALLOWED_HOSTS": "127.0.0.1"}
        if not options.sqlite:
            # SIGKILL takes nothing from the kernel: only the machine's own end would.
            postgres = PostgresServer(max_connections="300", fsync="off")
            stack.callback(postgres.close)
            variables["DATABASE_URL"] = postgres.create("sopllm")
        service = RunningService(**variables)
        stack.callback(service.close)
        if options.logs:
            stack.callback(shutil.copytree, service.var_dir / "log", options.logs)
        service.start("--no-demo")
        os.environ.update(service.env)
        django.setup()
        # Models cannot be imported before.
        from benchmarks import chaos_rows as rows

        receiver = CountingReceiver()
        stack.callback(receiver.stop)
        url = stack.enter_context(provider(delay_ms=50, token_delay_ms=20))
        register(service, CLOUD, url)
        service.register_echo()
        service.register_echo(SLOW_ECHO, delay_ms=200)
        load = receiver.load = Load(service, receiver, options.seed)
        run, watch, stopping = Run(service, load, postgres), rows.Watch(), threading.Event()
        watching = threading.Thread(target=keep_watching, args=(run, watch, stopping))
        started = time.monotonic()
        load.start(**CLIENTS)
        watching.start()
        try:
            kill_at_random(run, options.kills, options.minutes * 60, options.seed, watch)
            load.stop()
            drained_after = drain(run, rows)
            with contextlib.suppress(TimeoutError):  # they are in the table
                wait_for(lambda: not load.untold(), 60)
        finally:
            load.close()
            stopping.set()
            watching.join()
        for queue, begun_at, ended_at in rows.completed_attempts():
            load.successes[f"{queue} attempt"].append((begun_at, ended_at))
        found = rows.problems(load.accepted, load.batches, receiver.ids)
        twice = [pk for feed in load.feeds for pk, num in feed.ended.items() if num > 1]
        figures = {
            "machine": machine(),
            "seed": options.seed,
            "database": "SQLite" if options.sqlite else "PostgreSQL",
            "minutes": round((time.monotonic() - started) / 60, 1),
            "num_kills": len(run.kills),
            "processes": table(run),
            "rows": rows.counts(),
            "num_accepted": len(load.accepted),
            "answers of clients": dict(load.ends),
            "HTTP statuses": dict(sorted(load.statuses.items())),
            "drained after s": round(drained_after, 1),
            "lost": found["lost"],
            "doubled": found["doubled"],
            "wrong": load.wrong,
            "waited in line, max s": rounded(watch.waited),
            "without a living owner, max s": rounded(watch.stood_still),
            "though a worker was there, max s": rounded(watch.ignored),
            "which": [watch.stood_still.which, watch.ignored.which],
            "memory, MB": memory(run.memory_mb),
            "memory by time": [(round(at - started), round(mb)) for at, mb in run.memory_mb],
            "feeds": [
                {
                    "events": each.num_events,
                    "connections": each.num_connections,
                    "resyncs": each.num_resyncs,
                }
                for each in load.feeds
            ],
            "ends told twice": twice,
            "ends not told": len(load.untold()),
        }
        # Before the service is stopped, which may take longer than it should.
        keep(figures, options.json)
        show(figures)
        return figures


def main() -> int:
    parser = options_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--logs", type=Path, help="keep the logs of the processes in this new folder"
    )
    parser.add_argument("--sqlite", action="store_true", help="instead of PostgreSQL")
    options = parser.parse_args()
    figures = measure(options)
    is_stuck = max(figures[STILL[-1]].values(), default=0) > MAX_STILL_SECONDS
    return int(is_stuck or any(figures[name] for name in ("lost", "doubled", "wrong")))


def show(figures: dict[str, Any]) -> None:
    print(f"{'killed':<20}{'times':>6}{'recovery, median s':>20}{'max s':>8}")
    for line in figures["processes"]:
        name, times, middle, most = line.values()
        print(f"{name:<20}{times:>6}{middle or '-':>20}{most or '-':>8}")
    shown = ("minutes", "rows", "num_accepted", "HTTP statuses", "drained after s", "feeds")
    for name in (*shown, *STILL, "which", "memory, MB", "ends not told"):
        print(f"{name}: {figures[name]}")
    for name in ("lost", "doubled", "wrong", "ends told twice"):
        print(f"{name}: {len(figures[name])}", *figures[name][:20], sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
