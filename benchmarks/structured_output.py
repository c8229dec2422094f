"""200 tasks with JSON schemas: `python benchmarks/structured_output.py [--json FILE]`.

Submits them to a whole service at once; a real model answers at temperature 1, and every result of
a `completed` task is validated here again. Ends with status 1 when one does not validate. About
three minutes.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import keep, options_parser
from benchmarks.running_service import SMOLLM2, RunningService
from tests.inference.engine.schemas import SCHEMAS

LIMIT_SECONDS = 900.0


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


def measure(num_tasks: int) -> dict[str, Any]:
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
    options = parser.parse_args()
    figures = measure(options.tasks)
    print(f"{options.tasks} tasks over {figures['schemas']} schemas in {figures['seconds']} s")
    print(", ".join(f"{count} {end}" for end, count in figures["ends"].items()))
    print("\n".join(figures["problems"]) or "Every completed result validates.")
    keep(figures, options.json)
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
