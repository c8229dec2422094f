"""Kill parts of a running service: `python benchmarks/recovery.py [--rounds 10] [--json FILE]`.

Says how long each fault holds up the tasks that it hits, with the default settings, and ends with
status 1 when a task was lost or done twice. Ten rounds take about six minutes.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import faults
from benchmarks.figures import keep, options_parser
from benchmarks.running_service import (
    COUNTING,
    GPU_WORKER,
    VALKEY,
    RunningService,
    age_seconds,
    wait_for,
)
from sopllm.supervisor import STEADY_SECONDS

COUNT = COUNTING | {"max_tokens": 100}
WORDS = "one two three four five six seven eight"
NUM_SEQUENCES = 8
LIMIT_SECONDS = 60.0


class Round:
    """One fault: when it struck, the task whose recovery is timed, and all that must complete."""

    def __init__(self, timed: str, others: list[str], struck_at: float) -> None:
        self.timed = timed
        self.task_ids = [timed, *others]
        self.struck_at = struck_at


def gpu_child(service: RunningService) -> Round:
    """The pool process dies while it writes eight answers."""
    return _in_mid_generation(service, faults.kill_gpu_child)


def gpu_worker(service: RunningService) -> Round:
    """The whole GPU worker dies while it writes eight answers."""
    _wait_until_steady(service, GPU_WORKER)
    return _in_mid_generation(service, faults.kill_gpu_worker)


def web(service: RunningService) -> Round:
    """A web process dies between the commit of a task and the message to its worker."""
    dying = faults.DyingWeb(service, "echo", WORDS)
    struck_at = time.time()
    dying.submit_and_die()
    return Round(dying.task_id, [], struck_at)


def valkey(service: RunningService) -> Round:
    """Valkey dies and comes back empty, with tasks running and waiting."""
    _wait_until_steady(service, VALKEY)
    running = [service.submit(**COUNT), service.submit(WORDS, "slow-echo")]
    waiting = service.submit(**COUNT)
    for task_id in running:
        service.generating(task_id)
    struck_at = time.time()
    faults.empty_valkey(service)
    submitted = service.submit(WORDS, "echo")
    return Round(submitted, [*running, waiting], struck_at)


FAULTS: dict[str, Callable[[RunningService], Round]] = {
    "GPU pool process killed": gpu_child,
    "GPU worker killed": gpu_worker,
    "web killed before its message": web,
    "Valkey killed, empty": valkey,
}


def _in_mid_generation(service: RunningService, strike: Callable[[RunningService], None]) -> Round:
    """With as many answers as the model writes at a time, and one that waits."""
    tasks = [service.submit(**COUNT) for _ in range(NUM_SEQUENCES)]
    for task_id in tasks:
        service.generating(task_id)
    waiting = service.submit(**COUNT)
    struck_at = time.time()
    strike(service)
    return Round(tasks[0], [*tasks[1:], waiting], struck_at)


def _wait_until_steady(service: RunningService, mark: str) -> None:
    """The supervisor starts a process again at once only when it has lived for a while."""
    wait_for(lambda: age_seconds(service.pid(mark)) > STEADY_SECONDS + 1, LIMIT_SECONDS)


def timings(service: RunningService, struck: Round) -> dict[str, float]:
    """Seconds from the fault to the task's last start, and to its end."""
    task = service.task(struck.timed)
    return {
        "processing": _seconds(task["started_at"]) - struck.struck_at,
        "completed": _seconds(task["finished_at"]) - struck.struck_at,
    }


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def run_round(service: RunningService, strike: Callable[[RunningService], Round]) -> dict[str, Any]:
    """Strike, wait for the end of every task; the timings, and what went wrong."""
    struck = strike(service)
    for task_id in struck.task_ids:
        service.ended(task_id, LIMIT_SECONDS)
    wrong = [faults.what_is_wrong(service.report(task_id)) for task_id in struck.task_ids]
    return {**timings(service, struck), "wrong": [problem for problem in wrong if problem]}


def measure(num_rounds: int) -> dict[str, list[dict[str, Any]]]:
    """All rounds of all faults, taking turns."""
    service = RunningService()
    rounds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    try:
        service.start("--no-demo")
        service.register_echo()
        service.register_echo("slow-echo", delay_ms=200)
        service.ended(service.submit(**COUNT))
        for _ in range(num_rounds):
            for name, strike in FAULTS.items():
                rounds[name].append(run_round(service, strike))
    finally:
        service.close()
    return rounds


def spread(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 2),
        "median": round(median(values), 2),
        "max": round(max(values), 2),
    }


def main() -> int:
    parser = options_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    rounds = measure(options.rounds)
    figures = {
        name: {
            step: spread([each[step] for each in of_fault]) for step in ("processing", "completed")
        }
        for name, of_fault in rounds.items()
    }
    problems = [problem for each in rounds.values() for one in each for problem in one["wrong"]]
    print(f"{'seconds until (min / median / max)':<36}{'processing':>22}{'completed':>22}")
    for name, steps in figures.items():
        cells = [" / ".join(f"{value:.2f}" for value in step.values()) for step in steps.values()]
        print(f"{name:<36}{cells[0]:>22}{cells[1]:>22}")
    print("\n".join(problems) or f"{options.rounds} rounds: nothing lost, nothing twice.")
    keep({"rounds": options.rounds, "seconds": figures, "problems": problems}, options.json)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
