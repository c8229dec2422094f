"""What drafts gain: `python benchmarks/speculative.py [--model PATH] [--json FILE]`.

The packaged SmolLM2, or another model, twice, with drafts and without, their steps in turns. Each
round answers the same requests with both: text that is copied from the prompt, and novel text, for
1 and for 8 clients. Prints the ratio of their tokens a second. Four minutes on two idle cores.
"""

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine import packaged_model
from benchmarks.figures import Figures, keep, machine, options_parser, show
from inference.engine.engine import Engine
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams
from inference.engine.sequence import SamplingParams, Sequence

NUM_ROUNDS = 5
MAX_DRAFT_TOKENS = 16
NAMES = (
    "Ada Lovelace",
    "Grace Hopper",
    "Alan Turing",
    "Emmy Noether",
    "Carl Gauss",
    "Mary Jackson",
)
TABLE = "\n".join(
    f"{number + 1}. {name}, room {317 + 41 * number}, telephone 0{4711 * (number + 3)}"
    for number, name in enumerate(NAMES)
)
COPY = f"Write this list again, word for word, as it is:\n\n{TABLE}"
STORY = "Write a long story about "
SUBJECTS = ("stone", "salt", "bread", "glass", "owls", "maps", "rain", "clocks")


class Answers:
    """An engine, and the time that its own steps have taken in this round."""

    def __init__(self, runner: LlamaRunner) -> None:
        self.runner = runner
        self.engine = Engine(runner)
        self.seconds = 0.0
        self.sequences: list[Sequence] = []

    def begin(self, requests: list[tuple[str, SamplingParams]]) -> None:
        self.seconds, self.sequences = 0.0, []
        for text, params in requests:
            chat = self.runner.chat_template.render([{"role": "user", "content": text}])
            tokens = self.runner.tokenize(chat)
            name = str(len(self.sequences))
            self.sequences.append(self.engine.add_request(name, tokens, params))

    def step(self) -> None:
        started = time.perf_counter()
        self.engine.step()
        self.seconds += time.perf_counter() - started

    @property
    def rate(self) -> float:
        return sum(len(each.output_tokens) for each in self.sequences) / self.seconds


def copying(num_clients: int, _round: int) -> list[tuple[str, SamplingParams]]:
    return [(COPY, SamplingParams(temperature=0, max_tokens=128))] * num_clients


def novel(num_clients: int, round_number: int) -> list[tuple[str, SamplingParams]]:
    return [
        (
            f"{STORY}{SUBJECTS[number % len(SUBJECTS)]}.",
            SamplingParams(
                temperature=0.8, top_k=40, seed=8 * round_number + number, max_tokens=96
            ),
        )
        for number in range(num_clients)
    ]


TASKS = {"copied": copying, "novel": novel}


def measure(model_path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    runners = [
        LlamaRunner(
            LoadParams(path=model_path, context_window=1024, max_draft_tokens=max_draft_tokens)
        )
        for max_draft_tokens in (0, MAX_DRAFT_TOKENS)
    ]
    for kind, requests_of in TASKS.items():
        for num_clients in (1, 8):
            without, drafting = map(Answers, runners)
            ratios, rates, accepted = list[float](), list[float](), list[float]()
            for round_number in range(-1, NUM_ROUNDS):  # the first one is not counted
                for each in (without, drafting):
                    each.begin(requests_of(num_clients, round_number + 1))
                while without.engine.num_unfinished or drafting.engine.num_unfinished:
                    without.step()
                    drafting.step()
                if round_number >= 0:
                    ratios.append(drafting.rate / without.rate)
                    rates.append(without.rate)
                    num_accepted = sum(each.num_accepted_drafts for each in drafting.sequences)
                    num_tokens = sum(len(each.output_tokens) for each in drafting.sequences)
                    accepted.append(num_accepted / num_tokens)
            figures[name := f"{kind}, {num_clients} at a time"] = row(ratios, rates, accepted)
            show({name: figures[name]})
    for runner in runners:
        runner.close()
    return figures


def row(ratios: list[float], rates: list[float], accepted: list[float]) -> Figures:
    return {
        "tokens_per_second_without": round(median(rates), 1),
        "ratio_min": round(min(ratios), 3),
        "ratio_median": round(median(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "accepted_share_of_answer": round(median(accepted), 3),
    }


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF other than the packaged SmolLM2")
    options = parser.parse_args()
    figures = {"machine": machine(), **measure(options.model or packaged_model())}
    keep(figures, options.json)


if __name__ == "__main__":
    main()
