"""A model with several endpoints: `python benchmarks/endpoints.py [--json FILE]`.

500 tasks on two engines of 8 slots. One becomes ten times slower after 3 s, for good; the other is
down from 5 to 15 s. The time it takes, against what the engines could do meanwhile: so much as one
of them does for clients that ask it directly, 8 at a time.

Then an engine of 16 slots that others keep half busy: what batch work does to the 95th percentile
of their answers, in turns with and without it, and how much of it is done. Status 1 when a task
ends wrong. Five minutes.
"""

import asyncio
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import keep, options_parser, show
from benchmarks.running_service import RunningService
from tests.cloud_server import KEY, CloudServer

NUM_TASKS = 500
NUM_SLOTS = 8
WORDS = "alpha beta gamma delta epsilon zeta eta theta"
FIRST_MS, EACH_MS = 100.0, 50.0
SLOWER = 10
SLOW_FROM, DOWN_FROM, DOWN_UNTIL = 3.0, 5.0, 15.0

NUM_BUSY_SLOTS = 16
NUM_ROUNDS = 3
ROUND_SECONDS = 15.0
NUM_BATCH_TASKS = 1000


def register(service: RunningService, name: str, *servers: CloudServer, **config: Any) -> None:
    endpoints = [
        {"name": f"endpoint-{number}", "base_url": server.openai_url}
        for number, server in enumerate(servers, 1)
    ]
    config = {"model_name": "stand-in", "api_key": KEY, "endpoints": endpoints} | config
    body = {"name": name, "provider": "openai_compatible", "config": config}
    service.http.post("/models/register", json=body).raise_for_status()


def answer_seconds() -> float:
    """For how long an answer keeps a slot of an engine that is never idle."""
    body = {"model": "m", "messages": [{"role": "user", "content": WORDS}], "stream": True}
    num_answers = 10 * NUM_SLOTS
    with CloudServer(num_slots=NUM_SLOTS) as server, httpx.Client(timeout=60) as client:
        set_pace(server, 1)

        def ask(_: int) -> None:
            url = f"{server.openai_url}/chat/completions"
            client.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"})

        started = time.perf_counter()
        with ThreadPoolExecutor(NUM_SLOTS) as clients:
            list(clients.map(ask, range(num_answers)))
        return (time.perf_counter() - started) * NUM_SLOTS / num_answers


def least_seconds(seconds: float) -> float:
    """How long the tasks take two engines that are never idle while they can work.

    `seconds`: what an answer takes one that is not slow.
    """
    done, now, step = 0.0, 0.0, 0.001
    while done < NUM_TASKS:
        slow = SLOWER if now >= SLOW_FROM else 1
        is_down = DOWN_FROM <= now < DOWN_UNTIL
        done += step * NUM_SLOTS / seconds * (1 / slow + (not is_down))
        now += step
    return now


def set_pace(server: CloudServer, slower: float) -> None:
    server.delay_ms, server.token_delay_ms = FIRST_MS * slower, EACH_MS * slower


def measure_faults(service: RunningService, answer: float) -> dict[str, Any]:
    """One endpoint that slows down, one that dies and comes back."""
    with CloudServer(num_slots=NUM_SLOTS) as slow, CloudServer(num_slots=NUM_SLOTS) as dying:
        for server in (slow, dying):
            set_pace(server, 1)
        register(service, "unsteady", slow, dying, max_retries=5)
        body = {"model": "unsteady", "prompt": WORDS, "max_tokens": 64}
        service.drained([body] * 32)  # the worker knows both
        changes: list[tuple[float, Callable[[], None]]] = [
            (SLOW_FROM, lambda: set_pace(slow, SLOWER)),
            (DOWN_FROM, lambda: setattr(dying, "is_down", True)),
            (DOWN_UNTIL, lambda: setattr(dying, "is_down", False)),
        ]
        timers = [threading.Timer(seconds, change) for seconds, change in changes]
        started = time.perf_counter()
        for timer in timers:
            timer.start()
        ids = service.drained([body] * NUM_TASKS, limit_seconds=300)
        seconds = time.perf_counter() - started
        for timer in timers:
            timer.cancel()
    tasks = [service.task(task_id) for task_id in ids]
    wrong = [task for task in tasks if task["status"] != "completed" or text_of(task) != WORDS]
    asked = Counter(service.report(task_id)["attempts"][-1]["endpoint"] for task_id in ids)
    return {
        "seconds": round(seconds, 2),
        "of what is possible": round(seconds / least_seconds(answer), 3),
        "ended wrong": len(wrong),
        "more than one attempt": sum(task["attempt"] > 1 for task in tasks),
        **{f"answered by {name}": number for name, number in sorted(asked.items())},
    }


def text_of(task: dict[str, Any]) -> str:
    return str((task["result"] or {}).get("text", ""))


async def others(server: CloudServer, seed: int, rate: float) -> list[float]:
    """Seconds that each answer of others takes, who ask by chance, so often a second."""
    chance = random.Random(seed)  # noqa: S311 (the same load each time)
    body = {"model": "m", "messages": [{"role": "user", "content": WORDS}], "stream": True}

    async def ask() -> float:
        started = time.perf_counter()
        url = f"{server.openai_url}/chat/completions"
        await client.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"})
        return time.perf_counter() - started

    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        asked = []
        until = time.perf_counter() + ROUND_SECONDS
        while time.perf_counter() < until:
            asked.append(asyncio.create_task(ask()))
            await asyncio.sleep(chance.expovariate(rate))
        return await asyncio.gather(*asked)


def measure_batch(service: RunningService, answer: float) -> dict[str, Any]:
    """Batch work beside others who take half of what the engine can do, with and without a gate."""
    rate = NUM_BUSY_SLOTS / answer / 2
    rounds: dict[str, list[float]] = {"alone": [], "with a gate": [], "without a gate": []}
    num_done: dict[str, list[int]] = {"with a gate": [], "without a gate": []}
    with CloudServer(num_slots=NUM_BUSY_SLOTS) as server:
        set_pace(server, 1)
        register(service, "gated", server, batch_gate={}, max_concurrency=64)
        register(service, "ungated", server, max_concurrency=64)
        models = {"alone": None, "with a gate": "gated", "without a gate": "ungated"}
        for number in range(NUM_ROUNDS):
            for name, model in models.items():
                ids = []
                if model is not None:
                    body = {"model": model, "prompt": WORDS, "max_tokens": 64, "priority": 0}
                    response = service.http.post("/tasks/batch", json=[body] * NUM_BATCH_TASKS)
                    ids = [task["task_id"] for task in response.raise_for_status().json()]
                rounds[name].append(quantiles(asyncio.run(others(server, number, rate)), n=20)[-1])
                if model is None:
                    continue
                query = f"/tasks?status=completed&model={model}&limit=1000"
                done = service.http.get(query).raise_for_status().json()["results"]
                num_done[name].append(len({task["task_id"] for task in done} & set(ids)))
                for task_id in ids:
                    service.http.post(f"/tasks/{task_id}/cancel")
    alone = rounds.pop("alone")
    free = rate * ROUND_SECONDS
    return {
        "others alone, p95, s": round(median(alone), 3),
        **{
            name: {
                "p95 / alone": round(
                    median(with_it / without for with_it, without in zip(each, alone, strict=True)),
                    3,
                ),
                "batch tasks, of what is free": round(median(num_done[name]) / free, 3),
            }
            for name, each in rounds.items()
        },
    }


def main() -> None:
    parser = options_parser(__doc__)
    target = parser.parse_args().json
    service = RunningService()
    try:
        service.start("--no-demo")
        answer = answer_seconds()
        figures = {
            "an answer of an engine": {"seconds": round(answer, 3)},
            "slow and dead endpoints": measure_faults(service, answer),
            "batch work": measure_batch(service, answer),
        }
    finally:
        service.close()
    show(figures)
    keep(figures, target)
    if figures["slow and dead endpoints"]["ended wrong"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
