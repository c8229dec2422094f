"""How fast the service is around the model: `python benchmarks/service.py [--json FILE]`.

Starts the whole service with a model that answers at once, and measures it from outside with
asyncio clients; the reference is bare Celery on the same Valkey, in the same run. One minute.
"""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bare_celery
from benchmarks.figures import Figures, machine, report
from benchmarks.running_service import (
    ROOT,
    RunningService,
    free_port,
    wait_for,
)

SEED = 1
NUM_CLIENTS = 16
NUM_IDLE = 60
NUM_TASKS = (300, 600)
NUM_GETS = 1800
NUM_STARTS = 3
NUM_ROUND_TRIPS = 200
NUM_MESSAGES = 600
POLL_SECONDS = 0.005
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


class TaskClient:
    """The API, from one event loop with as many connections as there are clients."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._random = random.Random(SEED)  # noqa: S311 - prompts, no secrets

    async def submit(self) -> str:
        prompt = " ".join(self._random.choices(WORDS, k=8))
        body = {"model": "echo", "prompt": prompt, "max_tokens": 8, "temperature": 0}
        async with self._session.post("/api/v1/tasks", json=body) as response:
            answer = await response.json()
            assert response.status == 201, answer
            return str(answer["task_id"])

    async def has_ended(self, task_id: str, query: str = "") -> bool:
        async with self._session.get(f"/api/v1/tasks/{task_id}{query}") as response:
            status = (await response.json())["status"]
        assert status in ("pending", "processing", "completed"), status
        return bool(status == "completed")

    async def wait(self, task_id: str) -> None:
        """By long poll."""
        while not await self.has_ended(task_id, "?wait=10"):
            pass

    async def poll(self, task_id: str) -> None:
        """By asking every 5 ms."""
        while not await self.has_ended(task_id):
            await asyncio.sleep(POLL_SECONDS)


async def measure_api(base_url: str) -> dict[str, Figures]:
    """Latency, request rates and drain rates, after a warm-up."""
    connector = aiohttp.TCPConnector(limit=NUM_CLIENTS)
    async with aiohttp.ClientSession(base_url, connector=connector) as session:
        client = TaskClient(session)
        await many(50, lambda _: latency_ms(client, client.wait))
        figures = {
            "idle, long poll": await idle(client, client.wait),
            "idle, polled every 5 ms": await idle(client, client.poll),
        }
        for num_tasks in NUM_TASKS:
            figures[f"{num_tasks} tasks"] = await load(client, num_tasks)
        return figures


async def idle(client: TaskClient, end_of: Callable[[str], Awaitable[None]]) -> Figures:
    times = [await latency_ms(client, end_of) for _ in range(NUM_IDLE)]
    return percentiles(times)


async def latency_ms(client: TaskClient, end_of: Callable[[str], Awaitable[None]]) -> float:
    started = time.perf_counter()
    await end_of(await client.submit())
    return (time.perf_counter() - started) * 1000


async def load(client: TaskClient, num_tasks: int) -> Figures:
    """Submit all with 16 clients, watch them by polling 50 at a time, then read them all again."""
    started = time.perf_counter()
    task_ids = await many(num_tasks, lambda _: client.submit())
    submitted = time.perf_counter()
    left = list(task_ids)
    while left:
        ended = {task_id for task_id in left[:50] if await client.has_ended(task_id)}
        left = [task_id for task_id in left if task_id not in ended]
        await asyncio.sleep(POLL_SECONDS)
    drained = time.perf_counter()
    await many(NUM_GETS, lambda index: client.has_ended(task_ids[index % num_tasks]))
    return {
        "post_per_second": round(num_tasks / (submitted - started), 1),
        "drain_per_second": round(num_tasks / (drained - started), 1),
        "get_per_second": round(NUM_GETS / (time.perf_counter() - drained), 1),
    }


async def many(count: int, do: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """Do it `count` times, by 16 clients."""
    limit = asyncio.Semaphore(NUM_CLIENTS)

    async def one(index: int) -> Any:
        async with limit:
            return await do(index)

    return await asyncio.gather(*map(one, range(count)))


def percentiles(times: Sequence[float]) -> Figures:
    return {"p50_ms": round(median(times), 1), "p95_ms": round(quantiles(times, n=20)[-1], 1)}


def web_start_seconds(service: RunningService) -> float:
    """From exec to the first answer, of one more web process."""
    port = free_port()
    started = time.perf_counter()
    command = [sys.executable, "-m", "uvicorn", "sopllm.asgi:application", f"--port={port}"]
    web = subprocess.Popen(
        command, cwd=ROOT, env=service.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/healthz"))
        return time.perf_counter() - started
    finally:
        web.terminate()
        web.wait(10)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def measure() -> dict[str, Any]:
    """All figures of one run."""
    service = RunningService()
    try:
        service.start("--no-demo")
        service.register_echo()
        api = asyncio.run(measure_api(service.base_url))
        starts = [web_start_seconds(service) for _ in range(NUM_STARTS)]
    finally:
        service.close()
    bare = bare_celery.measure(NUM_ROUND_TRIPS, NUM_MESSAGES)
    return {
        "machine": machine(),
        "service": api,
        "bare Celery": bare,
        "ratios to bare Celery": ratios(api, bare),
        "web start, s": {"median": round(median(starts), 2), "max": round(max(starts), 2)},
    }


def ratios(api: dict[str, Figures], bare: Figures) -> Figures:
    loaded = api[f"{NUM_TASKS[-1]} tasks"]
    return {
        "idle latency / round trip": round(
            api["idle, long poll"]["p50_ms"] / bare["round_trip_ms_p50"], 2
        ),
        "POST / publish": round(loaded["post_per_second"] / bare["publish_per_second"], 2),
        "drain / drain": round(loaded["drain_per_second"] / bare["drain_per_second"], 2),
    }


def main() -> None:
    report(__doc__, measure)


if __name__ == "__main__":
    main()
