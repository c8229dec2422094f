"""Statistics of the ended tasks of some days, of one owner or of all, and by model.

Percentiles are taken over all tasks of the time asked for, by nearest rank: never over averages.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
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
    SELECT {part} AS part, COUNT(*),
        COUNT(CASE WHEN outcome = 'completed' THEN 1 END),
        COUNT(CASE WHEN outcome = 'failed' THEN 1 END),
        COUNT(CASE WHEN outcome = 'cancelled' THEN 1 END),
        SUM(prompt_tokens), SUM(completion_tokens), SUM(cached_tokens)
    FROM {table} WHERE ended_at >= %s AND ended_at < %s {of_owner}
    GROUP BY part
"""
# In the database, since SQLite meanwhile lets the other threads of its process run. The rank of a
# percentile is rounded up, in whole numbers. PostgreSQL's own function does the same in a sixth of
# the time.
_SPREADS = {
    "sqlite": """
    WITH ranked AS (
        SELECT {part} AS part, {value} AS value,
            ROW_NUMBER() OVER (PARTITION BY {part} ORDER BY {value}) AS place,
            COUNT(*) OVER (PARTITION BY {part}) AS num_tasks
        FROM {table}
        WHERE ended_at >= %s AND ended_at < %s {of_owner} AND {value} IS NOT NULL
    )
    SELECT part, AVG(value),
        MAX(CASE WHEN place = (num_tasks * 50 + 99) / 100 THEN value END),
        MAX(CASE WHEN place = (num_tasks * 95 + 99) / 100 THEN value END)
    FROM ranked GROUP BY part
""",
    "postgresql": """
    SELECT {part} AS part, AVG({value}), PERCENTILE_DISC(0.5) WITHIN GROUP (ORDER BY {value}),
        PERCENTILE_DISC(0.95) WITHIN GROUP (ORDER BY {value})
    FROM {table}
    WHERE ended_at >= %s AND ended_at < %s {of_owner} AND {value} IS NOT NULL GROUP BY part
""",
}


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
    whole = next(iter(models.values())) if len(models) == 1 else _summary(start, end, owner)
    days = (
        [Day(date=first.isoformat(), **whole)] if first == last else list(_days(first, last, owner))
    )
    return Stats(start=_iso(start), end=_iso(end), models=models, days=days, **whole)


def _days(first: date, last: date, owner: str | None) -> Iterator[Day]:
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        summary = _summary(_midnight(day), _midnight(day + timedelta(days=1)), owner)
        yield Day(date=day.isoformat(), **summary)


def _summary(start: datetime, end: datetime, owner: str | None) -> Summary:
    """Of all tasks, also when there are none."""
    return _summaries(start, end, owner, part="''").get("") or _summary_of((0,) * 7, {})


def _summaries(start: datetime, end: datetime, owner: str | None, part: str) -> dict[str, Summary]:
    """One for each value of `part`, in SQL: a column, or a constant for all tasks together."""
    counts = {name: row for name, *row in _rows(_COUNTS, start, end, owner, part=part)}
    spreads: defaultdict[str, dict[str, Spread]] = defaultdict(dict)
    spread = _SPREADS[connection.vendor]
    for quantity, value in _QUANTITIES.items():
        for name, *figures in _rows(spread, start, end, owner, part=part, value=value):
            mean, p50, p95 = (round(figure, 2) for figure in figures)
            spreads[name][quantity] = Spread(mean=mean, p50=p50, p95=p95)
    return {name: _summary_of(counts[name], spreads[name]) for name in counts}


def _rows(
    sql: str, start: datetime, end: datetime, owner: str | None, **names: str
) -> list[tuple[Any, ...]]:
    values = [connection.ops.adapt_datetimefield_value(moment) for moment in (start, end)]
    if owner is not None:
        values.append(owner)
    names["of_owner"] = "" if owner is None else "AND owner = %s"
    with connection.cursor() as cursor:
        cursor.execute(sql.format(table=EndedTask._meta.db_table, **names), values)
        return list(cursor.fetchall())


def _summary_of(counts: Sequence[int], spreads: dict[str, Spread]) -> Summary:
    total, completed, failed, cancelled, prompt, completion, cached_prompt = counts
    nothing = Spread(mean=None, p50=None, p95=None)
    return Summary(
        tasks=Outcomes(total=total, completed=completed, failed=failed, cancelled=cancelled),
        tokens=Tokens(prompt=prompt, completion=completion, cached=cached_prompt),
        queue_wait_ms=spreads.get("queue_wait_ms", nothing),
        ttft_ms=spreads.get("ttft_ms", nothing),
        tokens_per_second=spreads.get("tokens_per_second", nothing),
        total_ms=spreads.get("total_ms", nothing),
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _iso(moment: datetime) -> Timestamp:
    return moment.isoformat().replace("+00:00", "Z")
