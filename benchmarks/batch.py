"""Batches: lines a second, memory, what kills cost, and how soon an interactive task starts.

    python -m benchmarks.batch [--lines 5000] [--chats 200] [--rounds 3] [--kill]

First lines for echo. Then chats of SmolLM2 as a batch and as tasks that are submitted at once, in
turns, each from its upload or submission to its last answer. With --kill, the web processes, the
default worker and Valkey are killed in the meantime. Ends with status 1 if an answer is missing,
twice there, or out of order.
"""

import argparse
import json
import os
import signal
import sys
import time
from itertools import count, islice
from statistics import median
from typing import Any

import httpx

from benchmarks.running_service import (
    DEFAULT_WORKER,
    SMOLLM2,
    VALKEY,
    WEB,
    RunningService,
    resident_bytes,
    wait_for,
)

CHAT = "/v1/chat/completions"
MAX_TOKENS = 16


class BatchClient:
    """Of /v1, which asks again where a process was killed."""

    def __init__(self, service: RunningService) -> None:
        self._http = httpx.Client(base_url=f"{service.base_url}/v1", timeout=120, trust_env=False)

    def create(self, bodies: list[dict[str, Any]]) -> str:
        lines = "\n".join(
            json.dumps({"custom_id": str(n), "method": "POST", "url": CHAT, "body": body})
            for n, body in enumerate(bodies)
        )
        files = {"file": ("lines.jsonl", lines.encode())}
        file = self._http.post("/files", files=files, data={"purpose": "batch"})
        asked = {"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        response = self._http.post("/batches", json=asked)
        response.raise_for_status()
        return str(response.json()["id"])

    def batch(self, pk: str) -> dict[str, Any]:
        while True:
            try:
                response = self._http.get(f"/batches/{pk}")
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            response.raise_for_status()
            found: dict[str, Any] = response.json()
            return found

    def completed_at(self, pk: str) -> int | None:
        found: int | None = self.batch(pk)["completed_at"]
        return found

    def num_done(self, pk: str) -> int:
        counts = self.batch(pk)["request_counts"]
        return int(counts["completed"] + counts["failed"])

    def ids(self, pk: str) -> list[str]:
        """The custom_ids in the output file."""
        content = self._http.get(f"/files/{self.batch(pk)['output_file_id']}/content").text
        return [json.loads(line)["custom_id"] for line in content.splitlines()]


def memory_mb(service: RunningService) -> dict[str, float]:
    """Of the largest process of each kind."""
    return {
        name: max(resident_bytes(pid) for pid in service.pids(mark)) / 1e6
        for name, mark in (("web", WEB), ("default worker", DEFAULT_WORKER))
    }


def chat(model: str, index: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Say something about the number {index}."}]
    return {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}


def interactive_seconds(service: RunningService, model: str) -> float:
    """From the submission of a task to its start."""
    task_id = service.submit("Hello.", model, max_tokens=4)
    service.ended(task_id, 120)
    return float(service.report(task_id)["metrics"]["queue_wait_ms"]) / 1000


def run(service: RunningService, model: str, num_lines: int, *, has_kills: bool) -> None:
    """One batch beside a few interactive tasks; SystemExit for a wrong order."""
    client = BatchClient(service)
    before = memory_mb(service)
    started = time.monotonic()
    pk = client.create([chat(model, index) for index in range(num_lines)])
    wait_for(lambda: client.num_done(pk) > 0, 600)
    checked_after = time.monotonic() - started
    for share, mark in ((0.1, DEFAULT_WORKER), (0.3, VALKEY), (0.5, WEB)) if has_kills else ():
        while (num_done := client.num_done(pk)) < num_lines * share:
            time.sleep(0.1)
        print(f"  {mark.strip()} is killed at {num_done} lines")
        for pid in service.pids(mark):
            os.kill(pid, signal.SIGKILL)
    waits = []
    while not client.completed_at(pk):
        waits.append(interactive_seconds(service, model))
        time.sleep(5)
    seconds = time.monotonic() - started
    after = memory_mb(service)
    growth = ", ".join(f"{name} {after[name] - before[name]:+.0f} MB" for name in after)
    print(
        f"{num_lines} lines of {model}: {seconds:.1f} s, {num_lines / seconds:.1f} lines/s, first "
        f"answer after {checked_after:.1f} s; {growth}"
    )
    if waits:
        figures = f"{median(waits):.3f} s, at most {max(waits):.3f}"
        print(f"  {len(waits)} interactive tasks started after {figures}")
    check_order(client, pk, num_lines)


def check_order(client: BatchClient, pk: str, num_lines: int) -> None:
    if client.ids(pk) != [str(index) for index in range(num_lines)]:
        sys.exit("Answers are missing, twice there, or out of order.")


def compare(service: RunningService, num_chats: int, num_rounds: int) -> None:
    """Chats as a batch and as tasks, in turns; none has the prompt of another."""
    client = BatchClient(service)
    service.ended(service.submit("Hello.", max_tokens=1), 120)  # loads the model

    def as_batch(bodies: list[dict[str, Any]]) -> None:
        pk = client.create(bodies)
        wait_for(lambda: client.completed_at(pk), 3600, every_seconds=0.1)
        check_order(client, pk, num_chats)

    def as_tasks(bodies: list[dict[str, Any]]) -> None:
        service.drained(bodies, 3600)

    ratios, numbers = [], count(1000)
    for index in range(num_rounds):
        rates = {}
        for submit in (as_batch, as_tasks) if index % 2 else (as_tasks, as_batch):
            bodies = [chat(SMOLLM2, number) for number in islice(numbers, num_chats)]
            started = time.monotonic()
            submit(bodies)
            rates[submit] = num_chats / (time.monotonic() - started)
        ratios.append(rates[as_batch] / rates[as_tasks])
        batch_rate, task_rate = rates[as_batch], rates[as_tasks]
        line = f"{batch_rate:.1f}/s as a batch, {task_rate:.1f}/s as tasks, {ratios[-1]:.2f}"
        print(f"{num_chats} chats: {line}", flush=True)
    print(f"  ratio: {min(ratios):.2f}, {median(ratios):.2f}, {max(ratios):.2f} (min, median, max)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kill", action="store_true")
    arguments = parser.parse_args()
    service = RunningService()
    try:
        service.start()
        service.register_echo()
        if arguments.lines:
            run(service, "echo", arguments.lines, has_kills=arguments.kill)
        if arguments.chats:
            compare(service, arguments.chats, arguments.rounds)
    finally:
        service.close()


if __name__ == "__main__":
    main()
