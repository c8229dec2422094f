"""How well the service knows when tasks will end: 500 mixed tasks, Poisson arrivals at 0.7 load.

    .venv/bin/python -m benchmarks.waiting_times [--tasks 500]

Three models: two echo models that wait before each word, eight calls at a time, and SmolLM2.
What each submission was told (`eta_seconds`) is compared with what came. Wanted: 80 % (73 to 87) of
the ends lie between p10 and p90, and the median error of p50 is under 25 %.
"""

import argparse
import random
import threading
import time
from collections import defaultdict
from datetime import datetime
from statistics import mean, median
from typing import Any

from benchmarks.running_service import SMOLLM2, RunningService

LOAD = 0.7
CALLS_AT_A_TIME = 8
DELAYS_MS = {"slow-echo": 60, "slower-echo": 120}
WARM_UP = 24
_DRAIN_SECONDS = 300


def body(model: str, source: random.Random) -> dict[str, Any]:
    if model == SMOLLM2:
        prompt = "Tell a story about " + " ".join(["a fox and"] * source.randrange(1, 20))
        return {"model": model, "prompt": prompt, "max_tokens": source.choice([16, 32, 64])}
    words = min(80, max(5, round(source.lognormvariate(3.0, 0.5))))
    return {"model": model, "prompt": " ".join(["word"] * words), "max_tokens": 512}


class Run:
    """Tasks as they are submitted, and what each was told."""

    def __init__(self, service: RunningService) -> None:
        self._service = service
        self.told: dict[str, dict[str, Any]] = {}
        self._threads: list[threading.Thread] = []

    def submit(self, task: dict[str, Any]) -> None:
        thread = threading.Thread(target=self._submit, args=(task,))
        thread.start()
        self._threads.append(thread)

    def _submit(self, task: dict[str, Any]) -> None:
        answer = self._service.http.post("/tasks", json=task).raise_for_status().json()
        self.told[answer["task_id"]] = answer

    def ended(self) -> dict[str, dict[str, Any]]:
        """By id, the tasks as they are when all have ended."""
        for thread in self._threads:
            thread.join()
        limit = time.monotonic() + _DRAIN_SECONDS
        ends: dict[str, dict[str, Any]] = {}
        for task_id in self.told:
            while task_id not in ends and time.monotonic() < limit:
                task = self._service.http.get(f"/tasks/{task_id}", params={"wait": 30}).json()
                if task["finished_at"]:
                    ends[task_id] = task
        return ends


def seconds(task: dict[str, Any], begin: str) -> float:
    moments = (datetime.fromisoformat(task[name]) for name in (begin, "finished_at"))
    start, end = moments
    return (end - start).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=500)
    num_tasks = parser.parse_args().tasks
    source = random.Random(1)  # noqa: S311
    service = RunningService(MAX_CLOUD_CONCURRENCY=str(CALLS_AT_A_TIME))
    service.start()
    try:
        for name, delay_ms in DELAYS_MS.items():
            service.register_echo(name, delay_ms)
        models = [*DELAYS_MS, SMOLLM2]
        # Each model by itself, as busy as it can be: how many tasks a second it ends.
        rates = {}
        for model in models:
            warm_up = Run(service)
            began = time.monotonic()
            for _ in range(WARM_UP):
                warm_up.submit(body(model, source))
            warm_up.ended()
            rates[model] = WARM_UP / (time.monotonic() - began)
            if model in DELAYS_MS:
                rates[model] /= len(DELAYS_MS)  # they share the calls
            print(f"{model}: {rates[model]:.2f} tasks a second at most")
        time.sleep(5)  # the simulation has heard of them
        run = Run(service)
        total = LOAD * sum(rates.values())
        for _ in range(num_tasks):
            time.sleep(source.expovariate(total))
            [model] = source.choices(models, [rates[each] for each in models])
            run.submit(body(model, source))
        ends = run.ended()
    finally:
        service.stop()
    figures: defaultdict[str, list[tuple[bool, float, float]]] = defaultdict(list)
    num_unknown = 0
    for task_id, task in ends.items():
        eta = run.told[task_id]["eta_seconds"]
        if eta is None:
            num_unknown += 1
            continue
        real = seconds(task, "created_at")
        error = abs(eta["p50"] - real) / max(real, 0.001)
        for name in (task["model"], "all"):
            figures[name].append((eta["p10"] <= real <= eta["p90"], error, real))
    print(f"{len(ends)} of {num_tasks} ended; of {num_unknown} nothing was known")
    for name, found in figures.items():
        within = mean(is_within for is_within, _, _ in found)
        print(
            f"{name:<24} {len(found):>4} tasks, {mean(real for *_, real in found):.2f} s each: "
            f"{within:.0%} between p10 and p90, median error of p50 "
            f"{median(error for _, error, _ in found):.0%}"
        )


if __name__ == "__main__":
    main()
