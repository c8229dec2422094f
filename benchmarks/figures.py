"""What a benchmark has measured: nested tables, printed by their depth."""

from typing import Any

Figures = dict[str, float]


def show(figures: dict[str, Any], indent: int = 0) -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{name}")
            show(value, indent + 2)
        else:
            print(f"{' ' * indent}{name:<{40 - indent}}{value:>10}")
