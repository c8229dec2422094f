"""What a huge task costs those beside it: `python benchmarks/huge_tasks.py [--json FILE]`.

The longest pause between two deltas of four running answers, alone and while prompts are made of a
conversation of 20,001 messages, of a task of 10,000, and of a single text of 2 MB; and how soon the
first token of a small task reaches a client that has the service to itself. About three minutes.
"""

import itertools
import json
import sqlite3
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figures, machine, report
from benchmarks.running_service import COUNTING, SMOLLM2, RunningService, wait_for

NUM_RUNNING = 4
NUM_ROUNDS = 3
NUM_SMALL_TASKS = 40
SECONDS_ALONE = 3.0
LIMIT_SECONDS = 180.0
TURNS = [
    (role, f"This is message number {number}, and it says next to nothing.")
    for number, role in zip(range(20_000), itertools.cycle(["user", "assistant"]), strict=False)
]
TASKS: dict[str, dict[str, Any]] = {
    "10,000 messages": {
        "messages": [{"role": role, "content": content * 3} for role, content in TURNS[:10_000]]
    },
    "a text of 2 MB": {"prompt": "The quick brown fox jumps over the lazy dog. " * 46_000},
}
JSON = {"Content-Type": "application/json"}


def new_conversation(service: RunningService) -> str:
    """Its id. Filled by SQL, since turns come to a conversation by tasks alone."""
    created = service.http.post("/conversations", json={}).raise_for_status()
    conversation_id = str(created.json()["conversation_id"])
    with sqlite3.connect(service.var_dir / "db.sqlite3", timeout=30) as database:
        database.executemany(
            "INSERT INTO conversations_message"
            " (message_id, conversation_id, role, content, created_at)"
            " VALUES (?, ?, ?, ?, '2026-01-01 00:00:00')",
            [
                (f"msg_{number}", conversation_id, role, content)
                for number, (role, content) in enumerate(TURNS)
            ],
        )
    return conversation_id


class RunningAnswer:
    """A long answer that a thread reads, and when each of its deltas came."""

    def __init__(self, service: RunningService) -> None:
        self.task_id = service.submit(max_tokens=4000, **COUNTING)
        self.arrived_at: list[float] = []
        threading.Thread(target=self._read, args=[service], daemon=True).start()

    def has_begun(self) -> bool:
        return len(self.arrived_at) > 10

    def _read(self, service: RunningService) -> None:
        with service.http.stream("GET", f"/tasks/{self.task_id}/stream") as response:
            for line in response.iter_lines():
                if line == "event: token":
                    self.arrived_at.append(time.perf_counter())


def measure_pauses(service: RunningService) -> dict[str, Figures]:
    """The longest pause of the four, milliseconds: of the median round and of the worst."""

    bodies: dict[str, bytes | None] = {"alone": None}
    conversation = {"conversation_id": new_conversation(service), "prompt": "Hi"}
    for name, fields in {"conversation of 20,001 messages": conversation, **TASKS}.items():
        bodies[name] = json.dumps({"model": SMOLLM2, "max_tokens": 1, **fields}).encode()
    pauses: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(NUM_ROUNDS):
        answers = [RunningAnswer(service) for _ in range(NUM_RUNNING)]
        for answer in answers:
            wait_for(answer.has_begun, LIMIT_SECONDS)
        for name, body in bodies.items():
            started = time.perf_counter()
            if body is None:
                time.sleep(SECONDS_ALONE)
            else:
                response = service.http.post("/tasks", content=body, headers=JSON)
                task_id = response.raise_for_status().json()["task_id"]
                service.ended(task_id, LIMIT_SECONDS)
            pauses[name].append(max(longest_pause(answer, started) for answer in answers))
        for answer in answers:
            service.http.post(f"/tasks/{answer.task_id}/cancel").raise_for_status()
            service.ended(answer.task_id)
    return {
        name: {"median_ms": round(median(each)), "max_ms": round(max(each))}
        for name, each in pauses.items()
    }


def longest_pause(answer: RunningAnswer, since: float) -> float:
    """In milliseconds; until now, if nothing has come for longer than that."""
    times = [since, *(at for at in answer.arrived_at if at > since), time.perf_counter()]
    return max(later - earlier for earlier, later in pairwise(times)) * 1000


def measure_first_tokens(service: RunningService) -> Figures:
    """Milliseconds from the submission of a task to the client's first event of its answer."""
    times = []
    for number in range(NUM_SMALL_TASKS):
        prompt = f"Write a long story about the year {1800 + number}."
        started = time.perf_counter()
        task_id = service.submit(prompt, max_tokens=64, temperature=0)
        with service.http.stream("GET", f"/tasks/{task_id}/stream") as response:
            next(line for line in response.iter_lines() if line == "event: token")
            times.append((time.perf_counter() - started) * 1000)
        service.ended(task_id)
    return {"p50_ms": round(median(times), 1), "max_ms": round(max(times), 1)}


def measure() -> dict[str, Any]:
    service = RunningService()
    try:
        service.start("--no-demo")
        measure_first_tokens(service)  # loads the model
        return {
            "machine": machine(),
            "first token of a small task": measure_first_tokens(service),
            "longest pause of four answers": measure_pauses(service),
        }
    finally:
        service.close()


if __name__ == "__main__":
    report(__doc__, measure)
