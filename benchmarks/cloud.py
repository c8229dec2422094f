"""Tasks for a cloud that is a server on this machine: `python benchmarks/cloud.py [--json FILE]`.

How many tasks a second are drained when the provider takes 50 ms, against LiteLLM alone with as
many calls at once, and against a model that only waits as long; how long 300 tasks of 5 s take, and
what an urgent one in their midst waits. Then again with faults in one of ten answers; status 1
when a task ends wrong. Three minutes.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import keep, options_parser, show
from benchmarks.running_service import (
    API_WORKER,
    ROOT,
    RunningService,
    free_port,
    resident_bytes,
)
from tests.cloud_server import KEY

NUM_TASKS = 1000
NUM_FAULTY_TASKS = 500
NUM_SLOW_TASKS = 300
NUM_ROUNDS = 3
NUM_AT_ONCE = 256
DELAY_MS = 50
SLOW_MS = 5000
FAULT_RATE = 0.1
SEED = 1
WORDS = "alpha beta gamma delta epsilon zeta eta 😀"
# The same work without a service: as many calls at once as the worker makes.
BARE_LITELLM = """
import asyncio, os, sys, time
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
url, key, words, num_calls, num_at_once = *sys.argv[1:4], *map(int, sys.argv[4:6])

async def call(limit):
    async with limit:
        messages = [{"role": "user", "content": words}]
        stream = await litellm.acompletion(
            "openai/stand-in", messages, api_base=url, api_key=key, stream=True, max_tokens=64
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

async def main():
    limit = asyncio.Semaphore(num_at_once)
    await asyncio.gather(*(call(limit) for _ in range(num_at_once)))
    started = time.perf_counter()
    texts = await asyncio.gather(*(call(limit) for _ in range(num_calls)))
    assert all(text == words for text in texts), texts
    print(num_calls / (time.perf_counter() - started))

asyncio.run(main())
"""


@contextmanager
def provider(**options: float) -> Iterator[str]:
    """The base URL of a stand-in for OpenAI in a process of its own."""
    port = free_port()
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tests.cloud_server", f"--port={port}", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"{process.stdout.readline().strip()}/v1"
    finally:
        process.terminate()
        process.wait(10)


def register(service: RunningService, name: str, url: str, **config: Any) -> None:
    config = {"model_name": "stand-in", "base_url": url, "api_key": KEY} | config
    body = {"name": name, "provider": "openai_compatible", "config": config}
    service.http.post("/models/register", json=body).raise_for_status()


def drain(
    service: RunningService, model: str, num_tasks: int = NUM_TASKS, **fields: Any
) -> tuple[float, list[str]]:
    """Tasks a second from the batch's submission to the last end, and their ids."""
    body = {"model": model, "prompt": WORDS, "max_tokens": 64} | fields
    started = time.perf_counter()
    ids = service.drained([body] * num_tasks)
    return num_tasks / (time.perf_counter() - started), ids


def bare_litellm(url: str) -> float:
    """Calls a second of LiteLLM alone."""
    arguments = [url, KEY, WORDS, str(NUM_TASKS), str(NUM_AT_ONCE)]
    command = [sys.executable, "-c", BARE_LITELLM, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_speed(service: RunningService) -> dict[str, Any]:
    """Rates of the service, LiteLLM and a model that waits, in turns."""
    rates: dict[str, list[float]] = {"service": [], "only waiting": [], "bare LiteLLM": []}
    with provider(delay_ms=DELAY_MS) as url:
        register(service, "cloud", url)
        service.register_echo("waiting", delay_ms=DELAY_MS)
        drain(service, "cloud")  # the worker imports LiteLLM
        for _ in range(NUM_ROUNDS):
            rates["service"].append(drain(service, "cloud")[0])
            rates["only waiting"].append(drain(service, "waiting", prompt="alpha")[0])
            rates["bare LiteLLM"].append(bare_litellm(url))
    figures = {f"{name}, a second": round(median(values), 1) for name, values in rates.items()}
    middle = {name: median(values) for name, values in rates.items()}
    return {
        **figures,
        "service / only waiting": round(middle["service"] / middle["only waiting"], 3),
        "service / bare LiteLLM": round(middle["service"] / middle["bare LiteLLM"], 3),
    }


def measure_slow(service: RunningService) -> dict[str, Any]:
    """Tasks that take seconds, more of them than there are places, and an urgent one."""
    with provider(delay_ms=SLOW_MS) as url:
        register(service, "slow", url)
        body = {"model": "slow", "prompt": WORDS, "max_tokens": 64}
        started = time.perf_counter()
        submitted = service.http.post("/tasks/batch", json=[body] * NUM_SLOW_TASKS)
        ids = [task["task_id"] for task in submitted.raise_for_status().json()]
        time.sleep(SLOW_MS / 2000)
        urgent = service.submit(WORDS, "slow", priority=100)
        memory = resident_bytes(service.pid(API_WORKER))
        for task_id in ids:
            service.ended(task_id)
        seconds = time.perf_counter() - started
        wait_ms = service.report(urgent)["metrics"]["queue_wait_ms"]
        starts = sorted(service.task(task_id)["started_at"] for task_id in ids)
        urgent_start = service.ended(urgent)["started_at"]
    return {
        "seconds for all": round(seconds, 1),
        "urgent, queue wait, s": round(wait_ms / 1000, 2),
        "tasks that started after it": sum(start > urgent_start for start in starts),
        "api worker, resident MB": round(memory / 2**20),
    }


def measure_faults(service: RunningService) -> dict[str, Any]:
    """How tasks end while one of ten answers is a fault: with retries, and with a fallback."""
    with (
        provider(delay_ms=DELAY_MS) as sound,
        provider(delay_ms=DELAY_MS, fault_rate=FAULT_RATE, seed=SEED) as faulty,
    ):
        register(service, "retried", faulty, max_retries=5)
        register(service, "given-up", faulty, max_retries=0)
        register(service, "backup", sound)
        return {
            "retried": _ends(service, *drain(service, "retried", NUM_FAULTY_TASKS)),
            "with a fallback": _ends(
                service, *drain(service, "given-up", NUM_FAULTY_TASKS, fallback_models=["backup"])
            ),
        }


def _ends(service: RunningService, rate: float, task_ids: list[str]) -> dict[str, Any]:
    tasks = [service.task(task_id) for task_id in task_ids]
    wrong = [
        task
        for task in tasks
        if task["status"] != "completed"
        or task["result"]["text"] != WORDS
        or len(task["result"]["tool_calls"] or "no") != 2  # none, or both of a fault
    ]
    answered_by = Counter(task["result"]["model"] for task in tasks if task["result"])
    return {
        "a second": round(rate, 1),
        "ended wrong": len(wrong),
        "more than one attempt": sum(task["attempt"] > 1 for task in tasks),
        **{f"answered by {name}": number for name, number in sorted(answered_by.items())},
    }


def measure() -> dict[str, Any]:
    """All figures of one run."""
    service = RunningService(MAX_CLOUD_CONCURRENCY=str(NUM_AT_ONCE))
    try:
        service.start("--no-demo")
        return {
            "no faults": measure_speed(service),
            f"{NUM_SLOW_TASKS} of {SLOW_MS / 1000:g} s": measure_slow(service),
            "faults in one of ten": measure_faults(service),
        }
    finally:
        service.close()


def main() -> None:
    parser = options_parser(__doc__)
    target = parser.parse_args().json
    figures = measure()
    show(figures)
    keep(figures, target)
    if any(run["ended wrong"] for run in figures["faults in one of ten"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
