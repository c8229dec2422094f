"""A database with a million tasks beside one with few, in turns; a purge; 100 workers.

    python -m benchmarks.scale [--ended 1000000] [--pending 100000] [--rounds 9] [--workers 100]
        [--seconds 20] [--json FILE] [--log FILE]

On a PostgreSQL of its own. What each request takes with many rows in relation to what it takes with
2,500, which fill a page (min, median, max of the rounds); how long a purge holds locks, and what it
does to submissions meanwhile; what a task costs of queries and Redis operations, and how long its
claim waits for other claims. --log keeps the plans of slow queries.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import keep, machine, options_parser
from benchmarks.postgres import PostgresServer
from benchmarks.running_service import ROOT, RunningService
from sopllm.supervisor import child_set_up

WANTED = 1.5
_NUM_PROCESSES = 4
_DELAY_SECONDS = 0.1  # what a simulated answer takes
_SAMPLE_SECONDS = 0.05
_PURGED = 20_000
_NUM_ENDED, _NUM_PENDING = 2000, 500  # of the small database


class Database:
    """One of the databases, and a process that answers requests from it, with its own Valkey."""

    def __init__(self, url: str) -> None:
        # MAX_PENDING_TASKS would refuse what is to be measured.
        self._service = RunningService(DATABASE_URL=url, MAX_PENDING_TASKS="1000000")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scale", "--answer"],
            cwd=ROOT,
            env=self._service.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=child_set_up(0),  # noqa: PLW1509 - it takes no locks
        )

    def do(self, name: str, **values: Any) -> Any:
        """What the function of that name of the process gives."""
        self.begin(name, **values)
        return self.result()

    def begin(self, name: str, **values: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"name": name, "values": values}) + "\n")
        self._process.stdin.flush()

    def result(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("The process of the database has ended.")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._service.close()


def compare(small: Database, full: Database, num_rounds: int) -> dict[str, Any]:
    """By request: milliseconds with few rows and with all, and the ratios of the rounds."""
    times: dict[str, dict[str, list[float]]] = {}
    for number in range(num_rounds):
        for name in small.do("names"):
            turns = (("small", small), ("full", full))
            for key, database in turns if number % 2 else turns[::-1]:
                of_name = times.setdefault(name, {"small": [], "full": []})
                of_name[key].append(median(database.do("measure", what=name)))
    return {
        name: {
            **{f"{key}, ms": round(median(each), 2) for key, each in of_name.items()},
            "ratio": spread(
                [
                    full / small
                    for full, small in zip(of_name["full"], of_name["small"], strict=True)
                ]
            ),
        }
        for name, of_name in times.items()
    }


def spread(values: list[float]) -> dict[str, float]:
    ordered = (("min", min(values)), ("median", median(values)), ("max", max(values)))
    return {name: round(value, 2) for name, value in ordered}


def purge(postgres: PostgresServer, full: Database, other: Database) -> dict[str, Any]:
    """A purge beside submissions: its longest transaction, and theirs with and without it."""
    alone = other.do("submissions", num=200)
    full.do("expire", num=_PURGED)
    full.begin("purge")
    with sampling(postgres, "full") as waits:
        beside = other.do("submissions", num=200)
        purged = full.result()
    return {
        "rows": purged["rows"],
        "seconds": round(purged["seconds"], 1),
        "rows a second": round(purged["rows"] / purged["seconds"]),
        "batches": len(purged["batches_ms"]),
        "longest batch, ms": round(max(purged["batches_ms"])),
        "submission alone, median and max ms": [round(median(alone), 1), round(max(alone), 1)],
        "submission beside it, median and max ms": [
            round(median(beside), 1),
            round(max(beside), 1),
        ],
        "samples with lock waits": sum(waits.values()),
    }


def work(
    postgres: PostgresServer, full: Database, workers: list[Database], num: int, seconds: float
) -> dict[str, Any]:
    """Threads that claim tasks, wait as for an answer, and complete them."""
    full.do("query", sql="SELECT pg_stat_statements_reset()")
    before = [each.do("redis_calls") for each in workers]
    for each in workers:
        each.begin("work", num_threads=num // len(workers), seconds=seconds)
    with sampling(postgres, "full") as waits:
        done = [each.result() for each in workers]
    num_tasks = sum(each["tasks"] for each in done)
    calls: Counter[str] = Counter()
    for each, first in zip(workers, before, strict=True):
        calls.update({k: v - first.get(k, 0) for k, v in each.do("redis_calls").items()})
    statements = full.do("query", sql=_STATEMENTS)
    claims = sorted(seconds for each in done for seconds in each["claims"])
    return {
        "workers": num,
        "tasks": num_tasks,
        "tasks a second": round(num_tasks / seconds, 1),
        "at most, a second": round(num / _DELAY_SECONDS),
        "queries a task": round(sum(row[1] for row in statements) / num_tasks, 2),
        "Redis operations a task": round(sum(calls.values()) / num_tasks, 2),
        "Redis operations": {k: v for k, v in calls.most_common(8) if v},
        "claim, median, p99 and max ms": [
            round(1000 * claims[min(len(claims) - 1, int(len(claims) * part))], 1)
            for part in (0.5, 0.99, 1)
        ],
        "lock waits, backends in a sample": {
            "mean": round(sum(waits.values()) / max(1, waits.total_samples), 2),
            "by relation": dict(waits.most_common(5)),
        },
        "statements": [[row[0][:90], row[1], round(row[2], 2)] for row in statements[:10]],
    }


_STATEMENTS = """
    SELECT query, calls, mean_exec_time FROM pg_stat_statements
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = CURRENT_DATABASE())
        AND query !~* '^(BEGIN|COMMIT|SET |SHOW |SELECT pg_stat|SELECT \\$1$)'
    ORDER BY total_exec_time DESC
"""
_WAITS = """
    SELECT wait_event_type || ' ' || wait_event || ' ' || COALESCE((
        SELECT relation::regclass::text FROM pg_locks
        WHERE pg_locks.pid = activity.pid AND relation IS NOT NULL AND locktype = 'tuple' LIMIT 1
    ), ''), LEFT(query, 60)
    FROM pg_stat_activity AS activity
    WHERE wait_event_type IN ('Lock', 'LWLock') AND state = 'active'
"""


class Waits(Counter[str]):
    """How often a backend was seen to wait, by what for."""

    total_samples = 0


@contextmanager
def sampling(postgres: PostgresServer, database: str) -> Iterator[Waits]:
    """What backends wait for, looked at twenty times a second."""
    import psycopg  # the process that measures has no other use for it

    waits, stopping = Waits(), threading.Event()

    def sample() -> None:
        with psycopg.connect(postgres.url_of(database), autocommit=True) as connection:
            while not stopping.wait(_SAMPLE_SECONDS):
                waits.total_samples += 1
                for wait, query in connection.execute(_WAITS).fetchall():
                    waits[f"{wait}: {query}"] += 1

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield waits
    finally:
        stopping.set()
        thread.join()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        postgres = PostgresServer(
            max_connections="300",
            fsync="off",
            shared_buffers="512MB",
            max_wal_size="4GB",
            # To have a plan logged, each row is timed: some queries are then twice as slow.
            shared_preload_libraries="pg_stat_statements" + ",auto_explain" * bool(options.log),
            **{"auto_explain.log_min_duration": "20ms", "auto_explain.log_analyze": "on"},
        )
        stack.callback(postgres.close)
        if options.log:
            stack.callback(shutil.copy, postgres.folder / "log", options.log)

        def database(name: str) -> Database:
            opened = Database(postgres.url_of(name))
            stack.callback(opened.close)
            return opened

        postgres.create("small")
        postgres.create("full")
        small, full = database("small"), database("full")
        for each in (small, full):
            each.do("set_up")
        started = time.monotonic()
        small.do("fill", num_ended=_NUM_ENDED, num_pending=_NUM_PENDING)
        full.do("fill", num_ended=options.ended, num_pending=options.pending)
        figures: dict[str, Any] = {"machine": machine(), "rows": vars(options) | {"json": None}}
        figures["rows"] = {"ended": options.ended, "pending": options.pending}
        figures["filled after s"] = round(time.monotonic() - started)
        print(figures, flush=True)
        figures["requests"] = compare(small, full, options.rounds)
        show_requests(figures["requests"])
        figures["purge"] = purge(postgres, full, small_on_full := database("full"))
        print(json.dumps(figures["purge"], indent=2), flush=True)
        small_on_full.close()
        workers = [database("full") for _ in range(_NUM_PROCESSES)]
        for num_owners in (10, 1):
            full.do("give_to", num_owners=num_owners)
            figures[name := f"work of {num_owners} owners"] = work(
                postgres, full, workers, options.workers, options.seconds
            )
            print(name, json.dumps(figures[name], indent=2), flush=True)
        return figures


def show_requests(requests: dict[str, Any]) -> None:
    print(f"{'request':<46}{'small, ms':>10}{'full, ms':>10}{'ratio (min, median, max)':>26}")
    for name, (small, full, ratio) in ((name, row.values()) for name, row in requests.items()):
        ratios = " / ".join(f"{value:.2f}" for value in ratio.values())
        mark = " *" if ratio["median"] > WANTED else ""
        print(f"{name:<46}{small:>10.2f}{full:>10.2f}{ratios:>26}{mark}", flush=True)


class Answering:
    """In the process of a database: what can be measured there."""

    def __init__(self) -> None:
        import django

        django.setup()
        from benchmarks import scale_requests

        scale_requests.start()
        self._requests = scale_requests

    def run(self) -> None:
        for line in sys.stdin:
            asked = json.loads(line)
            function: Callable[..., Any] = getattr(self._requests, asked["name"])
            result = function(**asked["values"])
            print(json.dumps(result), flush=True)


def main() -> int:
    parser = options_parser(__doc__)
    parser.add_argument("--ended", type=int, default=1_000_000)
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--log", type=Path, help="keep PostgreSQL's log with the slow plans here")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        Answering().run()
        return 0
    figures = measure(options)
    keep(figures, options.json)
    ratios = [each["ratio"]["median"] for each in figures["requests"].values()]
    return int(max(ratios) > WANTED)


if __name__ == "__main__":
    sys.exit(main())
