"""What the whole service takes in memory: `python benchmarks/memory.py [--json FILE]`.

Proportional set sizes in MB, which add up, of each process: after the start, a first answer, a
first vector, and once the models have been idle for as long as they are kept, here some seconds.
Beside them how long the first answer and the first vector take, and the first ones after that.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figures, machine, report
from benchmarks.running_service import (
    MINILM,
    SMOLLM2,
    RunningService,
    children,
    command_line,
    proportional_bytes,
    wait_for,
)

KEPT_SECONDS = 20
LIMIT_SECONDS = 120.0
NAMES = {"valkey": "valkey", "uvicorn": "web", "gpu@": "gpu worker", "api@": "api worker"}
NAMES |= {"default@": "default worker", "embeddings@": "embeddings worker"}
NAMES |= {" beat ": "beat", " flower ": "flower"}


def memory_mb(service: RunningService) -> Figures:
    """Of each process; pool processes apart from their parents."""
    memory: Figures = {"serve": megabytes(service.serve.pid)}
    for pid in children(service.serve.pid):
        name = next(name for mark, name in NAMES.items() if mark in command_line(pid))
        number = sum(known.startswith(name) for known in memory) + 1
        memory[f"{name} {number}" if name == "web" else name] = megabytes(pid)
        for child in children(pid):
            memory[f"{name}, pool process"] = megabytes(child)
    return {**memory, "all": round(sum(memory.values()), 1)}


def megabytes(pid: int) -> float:
    return round(proportional_bytes(pid) / 2**20, 1)


def seconds(do: Callable[[], Any]) -> float:
    started = time.perf_counter()
    do()
    return round(time.perf_counter() - started, 2)


def answer(service: RunningService) -> None:
    task_id = service.submit("What is the capital of France?", max_tokens=20, temperature=0)
    assert service.ended(task_id, LIMIT_SECONDS)["status"] == "completed"


def vector(service: RunningService) -> None:
    service.http.post("/embeddings", json={"texts": ["a cat"]}).raise_for_status()


def measure() -> dict[str, Any]:
    """All figures of one run."""
    kept = {
        name: str(KEPT_SECONDS) for name in ("KEEP_ALIVE_SECONDS", "EMBEDDING_KEEP_ALIVE_SECONDS")
    }
    service = RunningService(DEFAULT_EMBEDDING_MODEL=MINILM, **kept)
    memory, times = {}, {}
    try:
        times["start"] = seconds(lambda: service.start("--no-demo"))
        memory["started"] = memory_mb(service)
        times["first answer"] = seconds(lambda: answer(service))
        memory["after an answer"] = memory_mb(service)
        times["first vector"] = seconds(lambda: vector(service))
        memory["after a vector"] = memory_mb(service)
        wait_until(service, MINILM, loaded=False)
        answer(service)
        memory["after an answer, vectors idle"] = memory_mb(service)
        wait_until(service, SMOLLM2, loaded=False)
        time.sleep(2)  # the pool process that has unloaded the model ends
        memory["all idle"] = memory_mb(service)
        times["answer after idling"] = seconds(lambda: answer(service))
        times["vector after idling"] = seconds(lambda: vector(service))
    finally:
        service.close()
    return {"machine": machine(), "PSS, MB": memory, "s": times}


def wait_until(service: RunningService, name: str, *, loaded: bool) -> None:
    wait_for(lambda: service.model(name)["loaded"] == loaded, LIMIT_SECONDS, every_seconds=0.1)


def main() -> None:
    report(__doc__, measure)


if __name__ == "__main__":
    main()
