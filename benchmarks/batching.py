"""The engine inside the whole service: `python benchmarks/batching.py [--json FILE]`.

Tokens a second through the tasks API with 8 clients, against the engine alone with 8 sequences, in
turns; then 100 tasks of which every fifth is for a second model, once with the swap window and once
in strict order. About four minutes.
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import keep, options_parser
from benchmarks.running_service import SMOLLM2, RunningService
from inference.engine.engine import Engine
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams
from inference.engine.sequence import SamplingParams

NUM_CLIENTS = 8
NUM_TASKS = 24
NUM_NEW_TOKENS = 64
NUM_ROUNDS = 9
SECOND_MODEL = "gemma-3-270m"
LIMIT_SECONDS = 300.0


def prompts() -> Iterator[str]:
    """Each its own, and none that the model answers in a few words."""
    for year in range(1900, 1900 + NUM_TASKS):
        yield f"Write a long story about the year {year}."


class EngineAlone:
    """The model in this process, with the settings that the service has by default."""

    def __init__(self, model_path: Path) -> None:
        self._runner = LlamaRunner(LoadParams(path=model_path, max_num_seqs=NUM_CLIENTS))
        self._engine = Engine(self._runner)

    def tokens_per_second(self) -> float:
        """Eight at a time, the next one as soon as one has ended."""
        params = SamplingParams(temperature=0, max_tokens=NUM_NEW_TOKENS)
        waiting = [(prompt, self._tokens(prompt)) for prompt in prompts()]
        num_tokens = 0
        started = time.perf_counter()
        while waiting or self._engine.num_unfinished:
            while waiting and self._engine.num_unfinished < NUM_CLIENTS:
                self._engine.add_request(*waiting.pop(0), params)
            num_tokens += sum(output.num_new_tokens for output in self._engine.step())
        return num_tokens / (time.perf_counter() - started)

    def _tokens(self, prompt: str) -> list[int]:
        rendered = self._runner.chat_template.render([{"role": "user", "content": prompt}])
        return self._runner.tokenize(rendered)


def service_tokens_per_second(service: RunningService) -> float:
    """Eight clients, each submits its next task when it has the answer."""

    def answered(prompt: str) -> int:
        task_id = service.submit(prompt, temperature=0, max_tokens=NUM_NEW_TOKENS)
        task = service.ended(task_id, LIMIT_SECONDS)
        return int(task["result"]["usage"]["completion_tokens"])

    started = time.perf_counter()
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        num_tokens = sum(clients.map(answered, prompts()))
    assert num_tokens == NUM_TASKS * NUM_NEW_TOKENS, "an answer has ended: the prompts are bad"
    return num_tokens / (time.perf_counter() - started)


def measure_service() -> dict[str, Any]:
    """Both in turns, after a warm-up of each."""
    service = RunningService()
    try:
        service.start("--no-demo")
        alone = EngineAlone(next((service.var_dir / "models").glob("SmolLM2*.gguf")))
        service_tokens_per_second(service)
        alone.tokens_per_second()
        rounds = [
            (service_tokens_per_second(service), alone.tokens_per_second())
            for _ in range(NUM_ROUNDS)
        ]
    finally:
        service.close()
    through_api, engine = (median(each) for each in zip(*rounds, strict=True))
    # Of neighbours in time, since the machine may be faster now and slower then.
    ratios = [one / other for one, other in rounds]
    return {
        "service_tokens_per_second": round(through_api, 1),
        "engine_tokens_per_second": round(engine, 1),
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def measure_swaps(swap_window_seconds: float, room_mb: int) -> dict[str, Any]:
    """100 short tasks, every fifth for the second model, submitted at once."""
    service = RunningService(
        SWAP_WINDOW_SECONDS=str(swap_window_seconds), MODEL_MEMORY_LIMIT_MB=str(room_mb)
    )
    fields = {"prompt": "The sun is", "max_tokens": 16, "temperature": 0}
    try:
        service.start("--no-demo")
        models = [SECOND_MODEL if number % 5 == 4 else SMOLLM2 for number in range(100)]
        started = time.perf_counter()
        batch = [{**fields, "model": model} for model in models]
        submitted = service.http.post("/tasks/batch", json=batch)
        submitted.raise_for_status()
        ended = [service.ended(task["task_id"], LIMIT_SECONDS) for task in submitted.json()]
        seconds = time.perf_counter() - started
    finally:
        service.close()
    by_start = [task["model"] for task in sorted(ended, key=lambda task: str(task["started_at"]))]
    return {
        "completed": sum(task["status"] == "completed" for task in ended),
        "swaps": sum(one != other for one, other in pairwise(by_start)),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--room-mb", type=int, default=0, help="MODEL_MEMORY_LIMIT_MB of the swaps")
    options = parser.parse_args()
    service = measure_service()
    print(
        f"8 clients, 64 new tokens: service {service['service_tokens_per_second']} tok/s, engine "
        f"{service['engine_tokens_per_second']} tok/s, ratio {service['ratio']}"
    )
    swaps = {
        "swap window 5 s": measure_swaps(5.0, options.room_mb),
        "strict order": measure_swaps(0.0, options.room_mb),
    }
    for name, figures in swaps.items():
        print(f"100 tasks, 20 for a second model, {name}: {figures}")
    keep({"service": service, "swaps": swaps}, options.json)


if __name__ == "__main__":
    main()
