"""What traces cost: `python benchmarks/tracing.py [--rounds 3] [--json FILE]`.

Drains tasks of a model that answers at once, without traces, with a Langfuse that takes them, with
one that is down, and with one that never answers, in turns; half a minute a round.
"""

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import keep, options_parser, show
from benchmarks.running_service import RunningService
from tests import otlp_server

NUM_TASKS = 500
WORDS = "alpha beta gamma delta epsilon zeta eta theta"
PUBLIC_KEY, SECRET_KEY = "pk-lf-benchmark", "sk-lf-benchmark"
OFF, ON, DOWN, HANGS = "without traces", "with traces", "Langfuse down", "Langfuse hangs"


def drained_per_second(**variables: str) -> float:
    """Of a service of its own, after a warm-up."""
    service = RunningService(**variables)
    try:
        service.start("--no-demo")
        service.register_echo()
        bodies = [{"model": "echo", "prompt": WORDS}] * NUM_TASKS
        service.drained(bodies)
        started = time.perf_counter()
        service.drained(bodies)
        return NUM_TASKS / (time.perf_counter() - started)
    finally:
        service.close()


def measure(num_rounds: int) -> dict[str, Any]:
    """Medians, each with its ratio to the one without traces."""
    rates: dict[str, list[float]] = {OFF: [], ON: [], DOWN: [], HANGS: []}
    for _ in range(num_rounds):
        rates[OFF].append(drained_per_second())
        for name in (ON, DOWN, HANGS):
            with otlp_server.running(PUBLIC_KEY, SECRET_KEY) as langfuse:
                if name == DOWN:
                    langfuse.status = 503
                if name == HANGS:
                    langfuse.may_answer.clear()
                variables = {"LANGFUSE_HOST": langfuse.url, "LANGFUSE_PUBLIC_KEY": PUBLIC_KEY}
                variables["LANGFUSE_SECRET_KEY"] = SECRET_KEY
                rates[name].append(drained_per_second(**variables))
                langfuse.may_answer.set()
    return {
        name: {
            "drained, a second": round(median(values), 1),
            "lowest": round(min(values), 1),
            "highest": round(max(values), 1),
            "ratio": round(median(values) / median(rates[OFF]), 3),
        }
        for name, values in rates.items()
    }


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    figures = measure(given.rounds)
    show(figures)
    keep(figures, given.json)


if __name__ == "__main__":
    main()
