"""Statistics of the ended tasks of some days, of one owner or of all, and by model.

Percentiles are taken over all tasks of the time asked for, by nearest rank: never over averages.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, TypedDict

from django.db import connection

from monitoring.events.events import Timestamp
from monitoring.models import EndedTask
from monitoring.redis.cache import cached

_CACHED_SECONDS = 10.0

# In SQL; the tasks where the value is null do not count.
_QUANTITIES = {
    "queue_wait_ms": "queue_wait_ms",
    "ttft_ms": "ttft_ms",
    "tokens_per_second": "CASE WHEN completion_tokens > 0 AND inference_ms > 0 "
    "THEN completion_tokens * 1000.0 / inference_ms END",
    "total_ms": "total_ms",
}
_COUNTS = """
    COUNT(*), COUNT(CASE WHEN outcome = 'completed' THEN 1 END),
    COUNT(CASE WHEN outcome = 'failed' THEN 1 END),
    COUNT(CASE WHEN outcome = 'cancelled' THEN 1 END),
    SUM(prompt_tokens), SUM(completion_tokens), SUM(cached_tokens)
"""
_ENDED = "FROM {table} WHERE ended_at >= %s AND ended_at < %s {of_owner}"
# PostgreSQL takes the percentiles of all quantities in one pass over the rows, by nearest rank.
_PERCENTILES = ", ".join(
    f"AVG({value}), PERCENTILE_DISC(0.5) WITHIN GROUP (ORDER BY {value}), "
    f"PERCENTILE_DISC(0.95) WITHIN GROUP (ORDER BY {value})"
    for value in _QUANTITIES.values()
)
# SQLite in one pass each: in the database too, since that lets the other threads of its process
# run. The rank is rounded up, in whole numbers.
_PERCENTILES_OF_ONE = f"""
    WITH ranked AS (
        SELECT {{part}} AS part, {{value}} AS value,
            ROW_NUMBER() OVER (PARTITION BY {{part}} ORDER BY {{value}}) AS place,
            COUNT(*) OVER (PARTITION BY {{part}}) AS num_tasks
        {_ENDED} AND {{value}} IS NOT NULL
    )
    SELECT part, AVG(value),
        MAX(CASE WHEN place = (num_tasks * 50 + 99) / 100 THEN value END),
        MAX(CASE WHEN place = (num_tasks * 95 + 99) / 100 THEN value END)
    FROM ranked GROUP BY part
"""  # noqa: S608 (our own names)
_DAYS = {"sqlite": "DATE(ended_at)", "postgresql": "(ended_at AT TIME ZONE 'UTC')::date::text"}


class Outcomes(TypedDict):
    """How many tasks ended, and how."""

    total: int
    completed: int
    failed: int
    cancelled: int


class Tokens(TypedDict):
    """Tokens in and out; `cached` of the prompts' were not computed again."""

    prompt: int
    completion: int
    cached: int


class Spread(TypedDict):
    """Of the tasks that have such a value; null when none has."""

    mean: float | None
    p50: float | None
    p95: float | None


class Summary(TypedDict):
    """The tasks that ended in some time.

    `queue_wait_ms`: from submission to the start; `ttft_ms`: from there to the first text;
    `total_ms`: from submission to the end; `tokens_per_second`: of the answer, its prompt's time
    included.
    """

    tasks: Outcomes
    tokens: Tokens
    queue_wait_ms: Spread
    ttft_ms: Spread
    tokens_per_second: Spread
    total_ms: Spread


class Day(Summary):
    """One day, in UTC."""

    date: Annotated[str, "date"]


class Stats(Summary):
    """Some whole days, in UTC: from `start` until before `end`; also by model, and day by day."""

    start: Timestamp
    end: Timestamp
    models: dict[str, Summary]
    days: list[Day]


def today() -> date:
    """In UTC."""
    return datetime.now(UTC).date()


def read(first: date, last: date, owner: str | None = None) -> Stats:
    """The tasks that ended from the first to the last day, as they were some seconds ago.

    Those of an owner; None: of all owners.
    """
    key = f"stats:{first}:{last}:{owner or ''}"
    return cached(key, _CACHED_SECONDS, lambda: _read(first, last, owner))


def _read(first: date, last: date, owner: str | None) -> Stats:
    start, end = _midnight(first), _midnight(last + timedelta(days=1))
    models = _summaries(start, end, owner, part="model_name")
    nothing = _summary((0,) * 7 + (None,) * 12)
    if len(models) == 1:
        whole = next(iter(models.values()))
    else:
        whole = _summaries(start, end, owner, part="''").get("", nothing)
    dates = [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]
    by_date = {dates[0]: whole}
    if len(dates) > 1:
        by_date = _summaries(start, end, owner, part=_DAYS[connection.vendor])
    days = [Day(date=each, **by_date.get(each, nothing)) for each in dates]
    return Stats(start=_iso(start), end=_iso(end), models=models, days=days, **whole)


def _summaries(start: datetime, end: datetime, owner: str | None, part: str) -> dict[str, Summary]:
    """One for each value of `part`, in SQL: a column, or a constant for all tasks together."""
    values = [connection.ops.adapt_datetimefield_value(moment) for moment in (start, end)]
    names = {"table": EndedTask._meta.db_table, "part": part, "of_owner": ""}
    if owner is not None:
        values.append(owner)
        names["of_owner"] = "AND owner = %s"

    def rows(statement: str, **value: str) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement.format(**names, **value), values)
            return list(cursor.fetchall())

    if connection.vendor == "postgresql":
        found = rows(f"SELECT {{part}} AS part, {_COUNTS}, {_PERCENTILES} {_ENDED} GROUP BY part")
    else:
        spreads = [
            {name: tuple(figures) for name, *figures in rows(_PERCENTILES_OF_ONE, value=value)}
            for value in _QUANTITIES.values()
        ]
        counted = rows(f"SELECT {{part}} AS part, {_COUNTS} {_ENDED} GROUP BY part")
        found = [sum((of.get(row[0], (None,) * 3) for of in spreads), row) for row in counted]
    return {name: _summary(figures) for name, *figures in found}


def _summary(figures: Sequence[Any]) -> Summary:
    """Of the seven counts, then mean, median and 95th percentile of each quantity."""
    total, completed, failed, cancelled, prompt, completion, cached_prompt, *spreads = figures
    rounded = [None if figure is None else round(figure, 2) for figure in spreads]
    wait, ttft, tokens_per_second, total_time = (
        Spread(mean=mean, p50=p50, p95=p95)
        for mean, p50, p95 in zip(rounded[::3], rounded[1::3], rounded[2::3], strict=True)
    )
    return Summary(
        tasks=Outcomes(total=total, completed=completed, failed=failed, cancelled=cancelled),
        tokens=Tokens(prompt=prompt, completion=completion, cached=cached_prompt),
        queue_wait_ms=wait,
        ttft_ms=ttft,
        tokens_per_second=tokens_per_second,
        total_ms=total_time,
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _iso(moment: datetime) -> Timestamp:
    return moment.isoformat().replace("+00:00", "Z")
