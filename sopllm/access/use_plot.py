"""What an owner has used by day, for the admin: SVG that is made here and needs no script."""

from collections.abc import Callable
from datetime import timedelta

from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.safestring import SafeString

from monitoring.models import OwnerUse

NUM_DAYS = 7

# In units of the SVG's view box.
_BAR_HEIGHT = 90
_TOP = 16
_DAY_WIDTH = 48

# By plot, what its bars are piled up of: a name, which is its CSS class too, and the number.
_PLOTS: dict[str, dict[str, Callable[[OwnerUse], int]]] = {
    "Tokens": {
        "prompt": lambda use: use.prompt_tokens,
        "answer": lambda use: use.completion_tokens,
    },
    "Tasks": {"tasks": lambda use: use.num_tasks},
}


def last_days(owner: str) -> list[OwnerUse]:
    """The use of the last NUM_DAYS days, UTC, the last one is today; unsaved rows where none is."""
    today = timezone.now().date()
    days = [today - timedelta(days=age) for age in reversed(range(NUM_DAYS))]
    used = {use.day: use for use in OwnerUse.objects.filter(owner=owner, day__gte=days[0])}
    nothing = {"num_tasks": 0, "prompt_tokens": 0, "completion_tokens": 0}
    return [used.get(day) or OwnerUse(owner=owner, day=day, **nothing) for day in days]


def plot(owner: str) -> SafeString:
    """Bars of tokens and of tasks by day, each with its number; the numbers as text too."""
    uses = last_days(owner)
    plots = []
    for name, parts in _PLOTS.items():
        totals = [sum(number(use) for number in parts.values()) for use in uses]
        scale = _BAR_HEIGHT / max(*totals, 1)
        days = []
        for index, (use, total) in enumerate(zip(uses, totals, strict=True)):
            y = float(_TOP + _BAR_HEIGHT)
            bars = []
            for part, number in parts.items():
                height = number(use) * scale
                y -= height
                bars.append({"part": part, "y": round(y, 1), "height": round(height, 1)})
            numbers = ", ".join(f"{number(use):,} {part}" for part, number in parts.items())
            days.append(
                {
                    "x": index * _DAY_WIDTH,
                    "bars": bars,
                    "top": round(y - 4, 1),
                    "total": _short(total),
                    "day": f"{use.day:%a} {use.day.day}",
                    "text": f"{use.day:%A, %B} {use.day.day}: {numbers}",
                }
            )
        plots.append(
            {"name": name, "parts": list(parts), "total": f"{sum(totals):,}", "days": days}
        )
    size = {"width": NUM_DAYS * _DAY_WIDTH, "base": _TOP + _BAR_HEIGHT, "day_width": _DAY_WIDTH}
    return render_to_string("sopllm/use_plot.html", {"plots": plots, **size})


def _short(number: float) -> str:
    """Three digits and a unit: 950, 1.2k, 34.5M."""
    for unit in ("", "k", "M"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}G"
