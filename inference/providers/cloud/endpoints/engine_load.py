"""What an engine tells of its load, and how much batch work it gets beside the rest.

Prometheus text at /metrics of vLLM, SGLang, llama-server (`--metrics`), or another of our services.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# What each engine calls them, newer names first; a gauge of several engines is one for each label.
_WAITING = (
    *("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"),
    "sopllm_num_requests_waiting",
)
_RUNNING = (
    *("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing"),
    "sopllm_num_requests_running",
)
_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
_NAMES = {*_WAITING, *_RUNNING, *_USAGE}


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Requests that wait and that run, and the part of its KV cache that is in use, 0 to 1.

    `usage`: None where the engine does not tell.
    """

    num_waiting: int
    num_running: int
    usage: float | None


def parse(lines: Iterable[str]) -> EngineLoad | None:
    """None where the text has no number of waiting requests that is known."""
    found: dict[str, list[float]] = {}
    for line in lines:
        name = line.partition("{")[0].partition(" ")[0]
        if name in _NAMES:
            value = _number(line.rpartition("}")[2] if "{" in line else line.partition(" ")[2])
            if value is not None:
                found.setdefault(name, []).append(value)
    waiting, running, usage = (
        next((found[name] for name in names if name in found), None)
        for names in (_WAITING, _RUNNING, _USAGE)
    )
    if waiting is None:
        return None
    return EngineLoad(round(sum(waiting)), round(sum(running or ())), max(usage) if usage else None)


def _number(text: str) -> float | None:
    """A value, which a timestamp may follow."""
    try:
        value = float(text.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return None
    return value if math.isfinite(value) and 0 <= value < 1e9 else None


class BatchGate:
    """How many calls of batch work an engine gets at a time: AIMD, by what it tells of its load.

    As long as nothing waits there and a part of it is unused, twice as many with each reading, and
    one more once it was too much; half as many else. An engine that tells nothing gets one.
    """

    def __init__(self, max_waiting: int = 0, max_usage: float = 0.8) -> None:
        self._max_waiting = max_waiting
        self._max_usage = max_usage
        self._is_starting = True
        # What runs while something waits: so much the engine does at a time; 0: not known yet.
        self._most_running = 0
        self.limit = 1
        self.load: EngineLoad | None = None

    def read(self, load: EngineLoad | None, num_calls: int) -> bool:
        """What the engine tells now, with so many calls of batch work; whether it gets more."""
        before, self.load = self.limit, load
        if load is None:
            self.limit = 1
        elif self._usage(load) > self._max_usage or load.num_waiting > self._max_waiting:
            self.limit = min(self.limit, num_calls) // 2
            self._is_starting = False
        elif num_calls >= self.limit:
            self.limit = max(1, self.limit * 2 if self._is_starting else self.limit + 1)
        return self.limit > before

    def _usage(self, load: EngineLoad) -> float:
        if load.usage is not None:
            return load.usage
        if load.num_waiting or load.num_running > self._most_running > 0:
            self._most_running = load.num_running
        return load.num_running / self._most_running if self._most_running else 0.0
