"""Strict order, the swap window as it was, and as it is: time in all against unfairness, simulated.

    .venv/bin/python -m benchmarks.scheduling [--plots docs/plots]

Mixed loads of 2 to 6 models on one GPU that holds one of them: Poisson arrivals at several loads,
the same tasks for each policy. Unfair is how long a task waits past its turn: from when all that go
before it have begun until it begins, loading included. The sessions are those of
`inference/scheduling/queue_model.py`, and so are the rules of the service. Also: what owners get by
turns of tasks, and by fair shares.
"""

import argparse
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from inference.scheduling.durations import quantile
from inference.scheduling.queue_model import Gpu, Policy, Work, run_gpus
from inference.scheduling.shares import Shares

LOAD_SECONDS = 4.0
NUM_SLOTS = 8
NUM_TASKS = 600
WINDOW = 5.0
SEEDS = range(10)
COLORS = {
    Policy.STRICT: "#b4472f",
    Policy.SINCE_SUBMISSION: "#8a8f98",
    Policy.SINCE_TURN: "#1f6feb",
}
NAMES = {
    Policy.STRICT: "strict order",
    Policy.SINCE_SUBMISSION: "window since submission",
    Policy.SINCE_TURN: "window since its turn",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds until the last task has ended, and that tasks have waited past their turn."""

    total: float
    unfair_p95: float
    unfair_mean: float
    num_loads: float


def mixed_load(num_models: int, share: float, seed: int) -> list[Work]:
    """Tasks of half to eight seconds, which keep that share of the sequences busy."""
    source = random.Random(seed)  # noqa: S311
    now = 0.0
    works = []
    for _ in range(NUM_TASKS):
        now += source.expovariate(share * NUM_SLOTS / 3.0)
        model = f"m{source.randrange(num_models)}"
        seconds = min(8.0, max(0.5, source.lognormvariate(0.9, 0.6)))
        works.append(Work(model, seconds, arrives=now))
    return works


def play(works: Sequence[Work], policy: Policy, window: float = WINDOW) -> Outcome:
    loads = {work.model: LOAD_SECONDS for work in works}
    one = Gpu(NUM_SLOTS, loads, window, policy)
    runs = run_gpus(works, [one])
    turn, more = 0.0, []
    for work, run in zip(works, runs, strict=True):
        turn = max(turn, work.arrives)
        more.append(max(0.0, run.ready - turn))
        turn = max(turn, run.start)
    more.sort()
    return Outcome(max(run.end for run in runs), quantile(more, 0.95), mean(more), one.num_loads)


def over_seeds(num_models: int, share: float, policy: Policy, window: float = WINDOW) -> Outcome:
    outcomes = [play(mixed_load(num_models, share, seed), policy, window) for seed in SEEDS]
    return Outcome(
        *(mean(getattr(each, name) for each in outcomes) for name in Outcome.__dataclass_fields__)
    )


def shares_of_owners() -> dict[str, dict[str, float]]:
    """What share of the GPU three owners have, whose tasks differ: by turns, and by the rule."""
    seconds = {"short tasks": 1.0, "long tasks": 8.0, "weight 2": 2.0}
    weights = {"short tasks": 1.0, "long tasks": 1.0, "weight 2": 2.0}
    fair: defaultdict[str, float] = defaultdict(float)
    rule = Shares()
    for _ in range(2000):
        owner = rule.next_owner(list(seconds))
        rule.claim(owner)
        rule.end(owner, seconds[owner], weights[owner], is_waiting=True)
        fair[owner] += seconds[owner]
    turns = {owner: each / sum(seconds.values()) for owner, each in seconds.items()}
    total = sum(fair.values())
    return {
        "task by task": turns,
        "fair shares": {owner: each / total for owner, each in fair.items()},
        "wanted": {owner: each / sum(weights.values()) for owner, each in weights.items()},
    }


_FONT = ' font-family="system-ui,sans-serif" font-size="12" fill="#333"'


def line_plot(
    title: str,
    x_name: str,
    y_name: str,
    series: dict[str, tuple[str, list[tuple[float, float]]]],
) -> str:
    """An SVG of lines, by name: color and points."""
    width, height, left, bottom, top = 520, 300, 58, 44, 34
    xs = [x for _, points in series.values() for x, _ in points]
    # Room for the names above the lines, and round numbers.
    step = 1.5 * max(y for _, points in series.values() for _, y in points) / 4
    unit = 10 ** math.floor(math.log10(step))
    most = 4 * unit * math.ceil(step / unit)
    span = max(xs) - min(xs) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - min(xs)) / span * (width - left - 20)
        return round(across, 1), round(height - bottom - y / most * (height - bottom - top), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"{_FONT}>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="18" font-size="13" font-weight="600">{title}</text>',
    ]
    for number in range(5):
        value = most * number / 4
        _, y = place(min(xs), value)
        parts.append(f'<path d="M{left} {y}H{width - 20}" stroke="#e3e5e8"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:.0f}</text>')
    for x in sorted(set(xs)):
        across, _ = place(x, 0)
        label = f'<text x="{across}" y="{height - bottom + 16}" text-anchor="middle">{x:g}</text>'
        parts.append(label)
    parts.append(
        f'<text x="{(width + left) / 2}" y="{height - 8}" text-anchor="middle">{x_name}</text>'
    )
    parts.append(
        f'<text transform="translate(14 {height / 2}) rotate(-90)" text-anchor="middle">'
        f"{y_name}</text>"
    )
    for index, (name, (color, points)) in enumerate(series.items()):
        path = "L".join("{} {}".format(*place(*point)) for point in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        y = top + 12 + 16 * index
        parts.append(f'<path d="M{left + 12} {y - 4}h18" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 36}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plots", type=Path, help="a folder for the SVGs")
    args = parser.parse_args()

    print(f"{'models':>6} {'load':>5} {'policy':<24} {'total':>7} {'loads':>6} {'unfair p95':>10}")
    by_models: dict[Policy, list[tuple[int, Outcome]]] = defaultdict(list)
    for num_models in range(2, 7):
        for share in (0.4, 0.7):
            for policy in Policy:
                found = over_seeds(num_models, share, policy)
                if share == 0.7:
                    by_models[policy].append((num_models, found))
                print(
                    f"{num_models:>6} {share:>5} {NAMES[policy]:<24} {found.total:>6.0f}s "
                    f"{found.num_loads:>6.0f} {found.unfair_p95:>9.0f}s"
                )
    by_window: dict[Policy, list[tuple[float, Outcome]]] = defaultdict(list)
    for window in (0.0, 2.5, 5.0, 10.0, 20.0, 40.0):
        for policy in (Policy.SINCE_SUBMISSION, Policy.SINCE_TURN):
            by_window[policy].append((window, over_seeds(3, 0.7, policy, window)))
    print("\nThree models at load 0.7, by SWAP_WINDOW_SECONDS")
    for policy, outcomes in by_window.items():
        for window, found in outcomes:
            print(
                f"{NAMES[policy]:<24} {window:>5g} s {found.total:>6.0f}s "
                f"{found.num_loads:>5.0f} loads, unfair p95 {found.unfair_p95:.0f} s"
            )
    print("\nShares of the GPU")
    for name, shares in shares_of_owners().items():
        print(f"{name:<14}", ", ".join(f"{owner} {each:.3f}" for owner, each in shares.items()))
    if args.plots is None:
        return
    args.plots.mkdir(parents=True, exist_ok=True)
    for name, title, y_name in (
        ("total", "600 tasks at load 0.7, until the last has ended", "seconds"),
        ("unfair_p95", "Waited past one's turn, p95", "seconds"),
    ):
        models = {
            NAMES[policy]: (
                COLORS[policy],
                [(float(n), getattr(found, name)) for n, found in outcomes],
            )
            for policy, outcomes in by_models.items()
        }
        plot = line_plot(title, "models", y_name, models)
        (args.plots / f"swaps_{name}.svg").write_text(plot)
    windows = {
        f"{NAMES[policy]}": (COLORS[policy], [(w, found.unfair_p95) for w, found in outcomes])
        for policy, outcomes in by_window.items()
    }
    plot = line_plot(
        "Three models at load 0.7: waited past one's turn, p95",
        "SWAP_WINDOW_SECONDS",
        "seconds",
        windows,
    )
    (args.plots / "swaps_window.svg").write_text(plot)


if __name__ == "__main__":
    main()
