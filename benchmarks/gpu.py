"""The engine on a GPU, without any service: `python benchmarks/gpu.py --model GGUF [--other GGUF]`.

Steps at batches of 1 to 64 against a bare loop over the same C API, in turns, and with
`--batched-bench PATH` beside llama.cpp's own benchmark; what the GPU's memory was predicted to take
and what NVML says; a second turn with the cache and without; gaps beside a long prompt; structured
answers against free ones; and with `--other` the time in which two models take each other's place.
Models of real shapes come from benchmarks/synthetic_gguf.py. Without a GPU all but its memory is
measured on the CPU, with small batches (`--batches 1 4`). [--json FILE]
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sopllm.settings")

from benchmarks.engine import (
    NUM_PROMPT_TOKENS,
    NUM_ROUNDS,
    NUM_STEPS,
    Prompts,
    first_token_seconds,
    measure_decode,
    measure_follow_up,
    measure_gaps,
)
from benchmarks.figures import Figures, keep, machine, options_parser, show
from benchmarks.structured_output import measure_speed
from inference.engine.engine import Engine
from inference.engine.gguf_header import read_header
from inference.engine.llama_runner import LlamaRunner
from inference.engine.memory_estimate import estimate
from inference.engine.runner import LoadParams
from monitoring.hardware import nvml

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT_WINDOW = 2048
ALL_LAYERS = -1
MB = 1024 * 1024


def used_mb(gpu_index: int) -> float:
    """What all processes use of the GPU's memory; 0 where NVML does not tell."""
    memory = nvml.memory(gpu_index)
    return memory.used_bytes / MB if memory else 0.0


@contextmanager
def loaded(path: Path, max_num_seqs: int) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(
        LoadParams(path=path, context_window=CONTEXT_WINDOW, max_num_seqs=max_num_seqs)
    )
    try:
        yield runner
    finally:
        runner.close()


def measure_memory(path: Path, gpu_index: int, batch_sizes: tuple[int, ...]) -> dict[str, Figures]:
    """Predicted and used, for so many sequences; what the driver takes once is not counted.

    One model is loaded before, so that the driver's share is there already.
    """
    with loaded(path, 1):
        pass
    figures = {}
    for max_num_seqs in batch_sizes:
        needed = estimate(
            read_header(path),
            context_window=CONTEXT_WINDOW,
            max_num_seqs=max_num_seqs,
            num_cache_cells=None,
            num_batch_tokens=512,
            gpu_layers=ALL_LAYERS,
            max_draft_tokens=0,
        )
        before = used_mb(gpu_index)
        with loaded(path, max_num_seqs) as runner:
            first_token_seconds(Engine(runner), Prompts(runner).new(NUM_PROMPT_TOKENS))
            used = used_mb(gpu_index) - before
        predicted = needed.device_bytes / MB
        figures[f"{max_num_seqs} sequences"] = {
            "predicted_mb": round(predicted),
            "used_mb": round(used),
            "ratio": round(predicted / used, 3) if used else 0.0,
        }
    return figures


def measure_swaps(paths: tuple[Path, Path]) -> Figures:
    """From the unloading of one model to the first token of the other, back and forth."""
    seconds, load_seconds = [], []
    for number in range(2 * NUM_ROUNDS):
        started = time.perf_counter()
        with loaded(paths[number % 2], max_num_seqs=8) as runner:
            load_seconds.append(time.perf_counter() - started)
            first_token_seconds(Engine(runner), Prompts(runner).new(NUM_PROMPT_TOKENS))
            seconds.append(time.perf_counter() - started)
    return {
        "load_ms": round(median(load_seconds) * 1000),
        "first_token_ms": round(median(seconds) * 1000),
        "slowest_ms": round(max(seconds) * 1000),
    }


def batched_bench(program: Path, path: Path, batch_sizes: tuple[int, ...]) -> dict[str, Figures]:
    """llama.cpp's benchmark with the same prompts' length and as many new tokens."""
    num_cells = max(batch_sizes) * (NUM_PROMPT_TOKENS + NUM_STEPS)
    command = [
        *(str(program), "-m", str(path), "-ngl", "99", "-c", str(num_cells)),
        *("-npp", str(NUM_PROMPT_TOKENS), "-ntg", str(NUM_STEPS)),
        *("-npl", ",".join(map(str, batch_sizes)), "--output-format", "jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (done.stdout + done.stderr).splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return {f"batch {row['pl']}": {"tokens_per_second": round(row["speed_tg"], 1)} for row in rows}


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--other", type=Path, help="a second model, to swap with")
    parser.add_argument("--batched-bench", type=Path, help="the program llama-batched-bench")
    parser.add_argument("--gpu-index", type=int, default=0, help="NVML's number of the GPU")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCH_SIZES))
    options = parser.parse_args()
    batch_sizes = tuple(options.batches)
    gpus = [each["name"] for each in nvml.read()]
    figures: dict[str, Any] = {"machine": {**machine(), "gpus": gpus}}
    parts: dict[str, Callable[[], Any]] = {
        "decode": lambda: measure_decode(options.model, batch_sizes),
        "second turn": lambda: measure_follow_up(options.model),
        "gaps between tokens": lambda: measure_gaps(options.model),
        "structured, 8 sequences": lambda: measure_speed(options.model, 8),
    }
    if gpus:
        parts["memory"] = lambda: measure_memory(options.model, options.gpu_index, batch_sizes)
    if options.batched_bench:
        parts["llama-batched-bench"] = lambda: batched_bench(
            options.batched_bench, options.model, batch_sizes
        )
    if options.other:
        parts["swaps"] = lambda: measure_swaps((options.model, options.other))
    for name, measure in parts.items():
        figures[name] = measure()
        show({name: figures[name]})  # what has been measured is kept if a later part fails
        keep(figures, options.json)


if __name__ == "__main__":
    main()
