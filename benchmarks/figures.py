"""What a benchmark has measured: nested tables, printed by their depth."""

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

Figures = dict[str, float]


def options_parser(about: str | None) -> argparse.ArgumentParser:
    """What every benchmark takes: `--json FILE`."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser


def report(about: str | None, measure: Callable[[], dict[str, Any]]) -> None:
    """Run a benchmark that takes nothing else: show its figures, and keep them."""
    options = options_parser(about).parse_args()
    figures = measure()
    show(figures)
    keep(figures, options.json)


def machine() -> dict[str, Any]:
    """Where they were measured."""
    return {"cores": os.cpu_count() or 0, "python": platform.python_version()}


def show(figures: dict[str, Any], indent: int = 0) -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{name}")
            show(value, indent + 2)
        else:
            print(f"{' ' * indent}{name:<{40 - indent}}{value:>10}")


def keep(figures: dict[str, Any], path: Path | None) -> None:
    """Write them to the file that was named, if one was."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
