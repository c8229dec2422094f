"""What access control costs: `python benchmarks/access.py [--json FILE]`.

POST and GET a second of 16 connections, in turns without a key (from the local machine), with one,
and with one whose requests a second are counted; and how many requests with an unknown key are
refused a second. About a minute.
"""

import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figures, machine, report
from benchmarks.running_service import ROOT, RunningService

NUM_ROUNDS = 5
NUM_REQUESTS = 800
NUM_CONNECTIONS = 16
BODY = {"model": "echo", "prompt": "one two three", "priority": 1}
UNKNOWN = f"sopllm_{8 * '0'}_{43 * 'a'}"


def new_key(service: RunningService) -> str:
    """A key that may do everything."""
    command = ("manage.py", "create_api_key", "ann", "--scopes", "tasks,admin", "--quiet")
    made = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=service.env, capture_output=True, check=True
    )
    return made.stdout.decode().strip()


async def a_second(
    http: aiohttp.ClientSession, status: int, method: str, path: str, **options: Any
) -> float:
    """Requests a second over all connections; each must be answered with the status."""

    async def go_on() -> None:
        for _ in range(NUM_REQUESTS // NUM_CONNECTIONS):
            async with http.request(method, path, **options) as response:
                await response.read()
                assert response.status == status, await response.text()

    started = time.perf_counter()
    await asyncio.gather(*(go_on() for _ in range(NUM_CONNECTIONS)))
    return NUM_REQUESTS / (time.perf_counter() - started)


async def measure_rates(base_url: str, key: str) -> dict[str, Figures]:
    rates: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    connector = aiohttp.TCPConnector(limit=NUM_CONNECTIONS)
    async with aiohttp.ClientSession(base_url, connector=connector) as http:
        limits = {"owner": "ann", "requests_per_second": 100_000}
        bearer = {"Authorization": f"Bearer {key}"}
        async with http.post("/api/v1/keys", json=limits, headers=bearer) as response:
            counted = {"Authorization": f"Bearer {(await response.json())['key']}"}
        for number in range(NUM_ROUNDS + 1):
            for kind, headers in (("no key", {}), ("key", bearer), ("counted key", counted)):
                rate = await a_second(
                    http, 201, "POST", "/api/v1/tasks", json=BODY, headers=headers
                )
                read = await a_second(http, 200, "GET", "/api/v1/models", headers=headers)
                if number:  # the first round warms up
                    rates["POST"][kind].append(rate)
                    rates["GET"][kind].append(read)
            unknown = {"Authorization": f"Bearer {UNKNOWN}"}
            rates["unknown key"]["refused"].append(
                await a_second(http, 401, "POST", "/api/v1/tasks", json=BODY, headers=unknown)
            )
    return {
        name: {kind: round(median(found), 1) for kind, found in kinds.items()}
        for name, kinds in rates.items()
    }


def measure() -> dict[str, Any]:
    service = RunningService()
    try:
        service.start("--no-demo")
        service.register_echo()
        rates = asyncio.run(measure_rates(service.base_url, new_key(service)))
    finally:
        service.close()
    ratios = {
        f"{name} with a {kind} / without": round(rates[name][kind] / rates[name]["no key"], 3)
        for name in ("POST", "GET")
        for kind in ("key", "counted key")
    }
    return {"machine": machine(), "requests a second": rates, "ratios": ratios}


if __name__ == "__main__":
    report(__doc__, measure)
