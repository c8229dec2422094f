"""What access control costs: `python benchmarks/access.py [--json FILE]`.

POST and GET of 16 connections, in turns without a key (from the local machine), with one, and with
one whose requests a second are counted; and requests with an unknown key, which are refused. For
each, requests a second, and the CPU time of the web process for a request, which other load of the
machine changes less. About three minutes.
"""

import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import machine, report
from benchmarks.running_service import ROOT, WEB, RunningService

NUM_ROUNDS = 6
NUM_REQUESTS = 800
NUM_CONNECTIONS = 16
BODY = {"model": "echo", "prompt": "one two three", "priority": 1}
UNKNOWN = f"sopllm_{8 * '0'}_{43 * 'a'}"


@dataclass(frozen=True, slots=True)
class Measured:
    """Requests a second, and CPU time of the web process for each of them, in microseconds."""

    rate: float
    cpu_us: float


def new_key(service: RunningService) -> str:
    """A key that may do everything."""
    command = ("manage.py", "create_api_key", "ann", "--scopes", "tasks,admin", "--quiet")
    made = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=service.env, capture_output=True, check=True
    )
    return made.stdout.decode().strip()


class Meter:
    """Measures requests to a running service."""

    def __init__(self, service: RunningService, http: aiohttp.ClientSession) -> None:
        self._web = psutil.Process(service.pid(WEB))
        self._http = http

    async def measure(self, status: int, method: str, path: str, **options: Any) -> Measured:
        """Over all connections; each request must be answered with the status."""

        async def go_on() -> None:
            for _ in range(NUM_REQUESTS // NUM_CONNECTIONS):
                async with self._http.request(method, path, **options) as response:
                    await response.read()
                    assert response.status == status, await response.text()

        cpu_before, started = self._cpu_seconds(), time.perf_counter()
        await asyncio.gather(*(go_on() for _ in range(NUM_CONNECTIONS)))
        seconds, cpu = time.perf_counter() - started, self._cpu_seconds() - cpu_before
        return Measured(NUM_REQUESTS / seconds, cpu / NUM_REQUESTS * 1e6)

    async def wait_until_idle(self) -> None:
        """Until no task is left that would take time from what is measured next."""
        while True:
            async with self._http.get("/api/v1/monitor/queue") as response:
                if not any((await response.json())["totals"].values()):
                    return
            await asyncio.sleep(0.2)

    def _cpu_seconds(self) -> float:
        times = self._web.cpu_times()
        return float(times.user + times.system)


async def measure_all(service: RunningService, key: str) -> dict[str, dict[str, list[Measured]]]:
    """By method and kind of caller, a measurement of each round."""
    found: defaultdict[str, defaultdict[str, list[Measured]]]
    found = defaultdict(lambda: defaultdict(list))
    connector = aiohttp.TCPConnector(limit=NUM_CONNECTIONS)
    async with aiohttp.ClientSession(service.base_url, connector=connector) as http:
        limits = {"owner": "ann", "requests_per_second": 100_000}
        bearer = {"Authorization": f"Bearer {key}"}
        async with http.post("/api/v1/keys", json=limits, headers=bearer) as response:
            counted = {"Authorization": f"Bearer {(await response.json())['key']}"}
        kinds = [("no key", {}), ("key", bearer), ("counted key", counted)]
        calls: dict[str, tuple[int, str, dict[str, Any]]] = {
            "POST": (201, "/api/v1/tasks", {"json": BODY}),
            "GET": (200, "/api/v1/models", {}),
        }
        meter = Meter(service, http)
        for number in range(NUM_ROUNDS + 1):
            kinds = kinds[1:] + kinds[:1]  # what comes first is not always the same
            for method, (status, path, options) in calls.items():
                for kind, headers in kinds:
                    await meter.wait_until_idle()
                    measured = await meter.measure(status, method, path, headers=headers, **options)
                    if number:  # the first round warms up
                        found[method][kind].append(measured)
            unknown = {"Authorization": f"Bearer {UNKNOWN}"}
            found["unknown key"]["refused"].append(
                await meter.measure(401, "POST", "/api/v1/tasks", json=BODY, headers=unknown)
            )
    return {name: dict(kinds) for name, kinds in found.items()}


def measure() -> dict[str, Any]:
    service = RunningService()
    try:
        service.start("--no-demo")
        service.register_echo()
        found = asyncio.run(measure_all(service, new_key(service)))
    finally:
        service.close()
    figures: dict[str, Any] = {"machine": machine()}
    for name, of in (("requests a second", "rate"), ("CPU of the web process, µs", "cpu_us")):
        figures[name] = {
            method: {
                kind: round(median(getattr(each, of) for each in rounds), 1)
                for kind, rounds in kinds.items()
            }
            for method, kinds in found.items()
        }
    for name, of in (("rate / without", "rate"), ("CPU / without", "cpu_us")):
        figures[name] = {
            f"{method}, {kind}": ratio(found[method][kind], found[method]["no key"], of)
            for method in ("POST", "GET")
            for kind in ("key", "counted key")
        }
    return figures


def ratio(these: list[Measured], those: list[Measured], of: str) -> float:
    """The median of the rounds' own ratios: other load of the machine is alike within a round."""
    pairs = zip(these, those, strict=True)
    return round(float(median(getattr(this, of) / getattr(that, of) for this, that in pairs)), 3)


if __name__ == "__main__":
    report(__doc__, measure)
