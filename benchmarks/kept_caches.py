"""What KV caches of conversations on disk save: `python benchmarks/kept_caches.py`.

The time to the first token of a turn behind 1,500 tokens, after the worker's process was killed and
after another model had the memory (the model is loaded again before the turn), with the kept cache
and without it, in turns. About three minutes.
"""

import os
import signal
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import report
from benchmarks.running_service import SMOLLM2, RunningService, wait_for

NUM_ROUNDS = 5
LIMIT_SECONDS = 120.0
# About 1,500 tokens.
HISTORY = " ".join(f"Fact {number} is as true as any other one." for number in range(130))


class Conversation:
    """One that has had a turn, whose KV cache is on disk."""

    def __init__(self, service: RunningService, number: int) -> None:
        self._service = service
        body = {"model": SMOLLM2, "system_prompt": f"You are number {number}. {HISTORY}"}
        response = service.http.post("/conversations", json=body).raise_for_status()
        self._id = str(response.json()["conversation_id"])
        before = set(self._folder.glob("*.kv"))
        self.num_tokens = int(self.ask()["tokens"]["total_tokens"])
        wait_for(lambda: set(self._folder.glob("*.kv")) - before, LIMIT_SECONDS)

    @property
    def _folder(self) -> Path:
        return self._service.var_dir / "kv"

    def ask(self) -> dict[str, Any]:
        """The report of a turn of a few tokens."""
        body = {"prompt": "Go on.", "conversation_id": self._id, "temperature": 0, "max_tokens": 4}
        task = self._service.http.post("/tasks", json=body).raise_for_status().json()
        self._service.ended(task["task_id"], LIMIT_SECONDS)
        return self._service.report(task["task_id"])

    def forget(self) -> None:
        for path in self._folder.glob("*.kv"):
            path.unlink()

    def delete(self) -> None:
        self._service.http.delete(f"/conversations/{self._id}").raise_for_status()
        self.forget()


def kill_worker(service: RunningService) -> None:
    killed = service.gpu_child()
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: service.gpu_child() != killed, LIMIT_SECONDS)


def unload(service: RunningService) -> None:
    """As another model would have it, that needs the memory."""
    body = {"model": SMOLLM2}
    service.http.post("/models/unload?wait=60", json=body).raise_for_status()


def measure() -> dict[str, Any]:
    service = RunningService()
    figures: dict[str, Any] = {}
    number = 0
    try:
        service.start("--no-demo")
        for what, drive_out in (("worker killed", kill_worker), ("model unloaded", unload)):
            ratios, times = [], []
            for _ in range(NUM_ROUNDS):
                ttft: dict[bool, float] = {}
                for is_kept in (True, False):
                    number += 1
                    conversation = Conversation(service, number)
                    drive_out(service)
                    if not is_kept:
                        conversation.forget()
                    wait_for(lambda: not service.model(SMOLLM2)["loaded"], LIMIT_SECONDS)
                    load = service.http.post("/models/load?wait=60", json={"model": SMOLLM2})
                    load.raise_for_status()
                    ttft[is_kept] = conversation.ask()["metrics"]["ttft_ms"]
                    num_tokens = conversation.num_tokens
                    conversation.delete()
                ratios.append(ttft[True] / ttft[False])
                times.append(ttft)
            figures[what] = {
                "tokens": num_tokens,
                "first token, kept (ms)": round(median(each[True] for each in times), 1),
                "first token, computed (ms)": round(median(each[False] for each in times), 1),
                "ratio, min": round(min(ratios), 3),
                "ratio, median": round(median(ratios), 3),
                "ratio, max": round(max(ratios), 3),
            }
    finally:
        service.close()
    return figures


if __name__ == "__main__":
    report(__doc__, measure)
