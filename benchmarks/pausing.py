"""How soon an urgent task is answered while long answers run: `python benchmarks/pausing.py`.

Eight long answers run on one model; an urgent task comes for the same model, for another one that
is loaded beside it, and for another one that has to be loaded in its place. The time from its
submission to its first token, and against the same task in an idle service in turns; then the long
answers must be as long as was asked for, in one attempt. About four minutes.
"""

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import report
from benchmarks.running_service import COUNTING, SMOLLM2, RunningService

NUM_ROUNDS = 5
NUM_RUNNING = 8
NUM_NEW_TOKENS = 400
LIMIT_SECONDS = 300.0
OTHER = "other"


def first_token_seconds(service: RunningService, model: str) -> tuple[float, float]:
    """From submission to the first token of an urgent task; and how much of it was loading."""
    started = time.perf_counter()
    task_id = service.submit(
        "Say hello.", model, priority=95, max_tokens=4, temperature=0, stream=True
    )
    with service.http.stream("GET", f"/tasks/{task_id}/stream") as stream:
        for line in stream.iter_lines():
            if line.startswith("event: token"):
                break
    seconds = time.perf_counter() - started
    service.ended(task_id, LIMIT_SECONDS)
    load_ms = service.report(task_id)["metrics"]["model_load_ms"] or 0.0
    return seconds, load_ms / 1000


def beside_long_answers(service: RunningService, model: str) -> tuple[float, float]:
    long_ones = [service.submit(**COUNTING, max_tokens=NUM_NEW_TOKENS) for _ in range(NUM_RUNNING)]
    for task_id in long_ones:
        service.generating(task_id)
    seconds = first_token_seconds(service, model)
    for task_id in long_ones:
        task = service.ended(task_id, LIMIT_SECONDS)
        usage = task["result"]["usage"]
        assert (task["status"], task["attempt"]) == ("completed", 1), task
        assert usage["completion_tokens"] == NUM_NEW_TOKENS, "an answer has ended"
    return seconds


def measure_case(model: str, *, has_room_for_both: bool) -> dict[str, float]:
    service = RunningService(PREEMPT_PRIORITY="90")
    try:
        service.start("--no-demo")
        path = next((service.var_dir / "models").glob("SmolLM2*.gguf")).name
        body = {"name": OTHER, "provider": "local", "config": {"model_path": path}}
        service.http.post("/models/register", json=body).raise_for_status()
        if not has_room_for_both:
            checked = service.http.post("/models/check-compatibility", json={"model": SMOLLM2})
            needed_mb = sum(checked.raise_for_status().json()["breakdown"].values())
            service.stop()
            service.env["MODEL_MEMORY_LIMIT_MB"] = str(int(1.5 * needed_mb))
            service.start("--no-demo")
        first_token_seconds(service, model)
        rounds = []
        for _ in range(NUM_ROUNDS):
            first_token_seconds(service, SMOLLM2)
            idle, idle_load = first_token_seconds(service, model)
            first_token_seconds(service, SMOLLM2)
            busy, busy_load = beside_long_answers(service, model)
            rounds.append((idle - idle_load, busy - busy_load, busy_load))
    finally:
        service.close()
    ratios = [busy / idle for idle, busy, _ in rounds]
    return {
        "idle (s)": round(median(idle for idle, _, _ in rounds), 3),
        "beside 8 answers (s)": round(median(busy for _, busy, _ in rounds), 3),
        "beside 8 answers, worst (s)": round(max(busy for _, busy, _ in rounds), 3),
        "and loading (s)": round(median(load for _, _, load in rounds), 3),
        "ratio, min": round(min(ratios), 2),
        "ratio, median": round(median(ratios), 2),
        "ratio, max": round(max(ratios), 2),
    }


def measure() -> dict[str, Any]:
    return {
        "same model": measure_case(SMOLLM2, has_room_for_both=True),
        "another model, loaded beside it": measure_case(OTHER, has_room_for_both=True),
        "another model, loaded in its place": measure_case(OTHER, has_room_for_both=False),
    }


if __name__ == "__main__":
    report(__doc__, measure)
