"""The statements of a task's life that every task runs, as SQL for SQLite and PostgreSQL.

Building such a statement takes the ORM several times as long as running it takes the database. All
times are of the database's clock.
"""

from functools import cache, lru_cache
from typing import Any

from django.conf import settings
from django.db import connection

from inference.models import MAX_PRIORITY, GenerationTask
from inference.models.owner_shares import OWNERS
from inference.models.plain_sql import first_row
from inference.scheduling.shares import STEP_SHARE

_COLUMNS = [str(field.column) for field in GenerationTask._meta.concrete_fields]

SUBMIT = f"""
INSERT INTO inference_generationtask ({", ".join(_COLUMNS)})
VALUES ({", ".join(f"%({column})s" for column in _COLUMNS)})
"""  # noqa: S608 (our own names)

# What GenerationTaskQuerySet.due() has, of the queue, model or id that is asked for.
_CLAIMABLE = """
FROM inference_generationtask AS task
WHERE status = 'pending'
    AND (due_at IS NULL OR due_at <= {now})
    AND (deadline_at IS NULL OR deadline_at > {now})
    AND (max_running IS NULL OR owner NOT IN (
        SELECT owner FROM inference_generationtask
        WHERE status = 'processing' AND max_running IS NOT NULL
        GROUP BY owner HAVING COUNT(*) >= MIN(max_running)
    ))
    AND NOT EXISTS (
        SELECT 1 FROM inference_generationtask AS earlier
        WHERE earlier.conversation_id = task.conversation_id
            AND earlier.status IN ('pending', 'processing')
            AND (earlier.created_at, earlier.id) < (task.created_at, task.id)
    )
"""

# Of the highest priority, the first task of the owner whose turn it is; where others have just
# claimed all of that, whichever is left. PostgreSQL would have claims of the same task wait for one
# another, and looks for tasks of one owner after the other; SQLite has one writer anyway.
_TOP = "(SELECT priority FROM top)"
_FIRST_ID = f"""
WITH RECURSIVE top AS MATERIALIZED (
    SELECT priority {_CLAIMABLE} {{of_tasks}} ORDER BY priority DESC LIMIT 1
), {OWNERS.format(priority=_TOP, except_owner="")}, firsts (id) AS {{lazily}} (
    SELECT (
        SELECT id {_CLAIMABLE} {{of_tasks}} AND priority = {_TOP} AND owner = in_turn.owner
        ORDER BY created_at, id LIMIT 1 {{skip_locked}}
    )
    FROM (SELECT owner FROM keys ORDER BY key, owner) AS in_turn
)
SELECT COALESCE((SELECT id FROM firsts WHERE id IS NOT NULL LIMIT 1), (
    SELECT id {_CLAIMABLE} {{of_tasks}}
    ORDER BY priority DESC, owner, created_at, id LIMIT 1 {{skip_locked}}
))
"""  # noqa: S608
_SELECT_FIRST = f"""
SELECT id, model_name, priority, created_at, status, attempt FROM inference_generationtask
WHERE id = ({_FIRST_ID.replace("{skip_locked}", "")})
"""  # noqa: S608
_OF_QUEUE = "AND queue = %(queue)s"
FIRST_OF_QUEUE = _SELECT_FIRST.replace("{of_tasks}", _OF_QUEUE)
FIRST_OF_MODEL = _SELECT_FIRST.replace("{of_tasks}", f"{_OF_QUEUE} AND model_name = %(model_name)s")

# `has_share`: whether its owner's virtual time stays as it is, which it does while the owner is
# busy, and while nobody's is higher.
_CLAIM = """
UPDATE inference_generationtask
SET status = 'processing', attempt = attempt + 1, worker = %(worker)s, lease_until = {lease_end},
    due_at = NULL, started_at = {now}, updated_at = {now}
WHERE id = (__FIRST__)
RETURNING *, EXISTS (
    SELECT 1 FROM inference_ownershare AS share
    WHERE share.queue = inference_generationtask.queue
        AND share.priority = inference_generationtask.priority
        AND share.owner = inference_generationtask.owner
        AND (share.active_at >= inference_generationtask.created_at OR share.virtual_time >= (
            SELECT MAX(virtual_time) FROM inference_ownershare AS other
            WHERE other.queue = share.queue AND other.priority = share.priority
        ))
) AS has_share
"""
CLAIM = _CLAIM.replace("__FIRST__", f"SELECT id {_CLAIMABLE} AND id = %(task_id)s {{skip_locked}}")
_CLAIM_FIRST = _CLAIM.replace("__FIRST__", _FIRST_ID)

# Of an owner whose only task was just claimed, after a pause: it starts at the present.
BEGIN_SHARE = f"""
{{in_turn}}
WITH RECURSIVE {OWNERS.format(priority="%(priority)s", except_owner="AND owner <> %(owner)s")}
INSERT INTO inference_ownershare (queue, priority, owner, virtual_time, step, active_at)
SELECT %(queue)s, %(priority)s, %(owner)s, present.virtual_time, COALESCE((
    SELECT AVG(step) FROM inference_ownershare WHERE queue = %(queue)s AND priority = %(priority)s
), 1), {{now}} FROM present
WHERE (
    SELECT COUNT(*) FROM inference_generationtask
    WHERE status = 'processing' AND queue = %(queue)s AND priority = %(priority)s
        AND owner = %(owner)s
) <= 1
ON CONFLICT (queue, priority, owner) DO UPDATE SET
    virtual_time = CASE WHEN inference_ownershare.virtual_time > excluded.virtual_time
        THEN inference_ownershare.virtual_time ELSE excluded.virtual_time END,
    active_at = excluded.active_at
"""  # noqa: S608

# What an attempt has cost: its share of the time on the GPU where that is known, or one call.
_COST = """CASE WHEN %(queue)s = 'gpu' THEN COALESCE(%(gpu_seconds)s, {seconds_since_start})
    ELSE 1.0 END / %(weight)s"""
ADD_TO_SHARE = f"""
{{in_turn}}
INSERT INTO inference_ownershare (queue, priority, owner, virtual_time, step, active_at)
VALUES (%(queue)s, %(priority)s, %(owner)s, {_COST}, {_COST}, {{now}})
ON CONFLICT (queue, priority, owner) DO UPDATE SET
    virtual_time = inference_ownershare.virtual_time + excluded.virtual_time,
    step = inference_ownershare.step + {STEP_SHARE} * (excluded.step - inference_ownershare.step),
    active_at = excluded.active_at
"""  # noqa: S608

# The waiting of each task raises its priority in whole steps, so that owners share within one.
AGE = f"""
UPDATE inference_generationtask
SET priority = CASE WHEN priority + {{num_aged}} - aged > {MAX_PRIORITY} THEN {MAX_PRIORITY}
        ELSE priority + {{num_aged}} - aged END,
    aged = {{num_aged}}
WHERE status = 'pending' AND {{num_aged}} > aged
"""  # noqa: S608

FINISH = """
UPDATE inference_generationtask
SET status = %(status)s, result = %(result)s, error = %(error)s, error_code = %(error_code)s,
    model_load_ms = %(model_load_ms)s, ttft_ms = %(ttft_ms)s, inference_ms = %(inference_ms)s,
    gpu_seconds = %(gpu_seconds)s, energy_joules = %(energy_joules)s,
    cost_nano_usd = %(cost_nano_usd)s,
    finished_at = {now}, updated_at = {now}, expires_at = {expiry}, lease_until = NULL
WHERE id = %(task_id)s AND attempt = %(attempt)s AND status = 'processing'
    AND (%(status)s = 'cancelled' OR NOT cancel_requested)
"""

ADD_ATTEMPT = """
INSERT INTO inference_taskattempt
    (task_id, number, worker, model_name, started_at, ended_at, outcome, error, error_code,
    gpu_seconds, energy_joules, cost_nano_usd, provenance, history_end, endpoint)
VALUES (%(task_id)s, %(number)s, %(worker)s, %(model_name)s, %(started_at)s, {now}, %(outcome)s,
    %(error)s, %(error_code)s, %(gpu_seconds)s, %(energy_joules)s, %(cost_nano_usd)s,
    %(provenance)s, %(history_end)s, %(endpoint)s)
"""

ADD_ENDED_TASK = """
INSERT INTO monitoring_endedtask
    (owner, model_name, outcome, ended_at, prompt_tokens, completion_tokens, cached_tokens,
    queue_wait_ms, ttft_ms, inference_ms, total_ms)
VALUES (%(owner)s, %(model_name)s, %(outcome)s, {now}, %(prompt_tokens)s, %(completion_tokens)s,
    %(cached_tokens)s, %(queue_wait_ms)s, %(ttft_ms)s, %(inference_ms)s, %(total_ms)s)
"""

ADD_USE = """
INSERT INTO monitoring_owneruse
    (owner, day, num_tasks, prompt_tokens, completion_tokens, cost_nano_usd)
VALUES (%(owner)s, {today}, %(num_tasks)s, %(prompt_tokens)s, %(completion_tokens)s,
    %(cost_nano_usd)s)
ON CONFLICT (owner, day) DO UPDATE SET
    num_tasks = monitoring_owneruse.num_tasks + excluded.num_tasks,
    prompt_tokens = monitoring_owneruse.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = monitoring_owneruse.completion_tokens + excluded.completion_tokens,
    cost_nano_usd = monitoring_owneruse.cost_nano_usd + excluded.cost_nano_usd
"""

NO_USE = {"num_tasks": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost_nano_usd": 0}

# One statement, in which a task that ends meanwhile is either running or paid for.
RESERVE = """
UPDATE inference_generationtask SET reserved_nano_usd = %(nano_usd)s
WHERE id = %(task_id)s AND attempt = %(attempt)s AND status = 'processing'
    AND %(nano_usd)s + (
        SELECT COALESCE(SUM(cost_nano_usd), 0) FROM monitoring_owneruse
        WHERE owner = %(owner)s AND day >= {month}
    ) + (
        SELECT COALESCE(SUM(reserved_nano_usd), 0) FROM inference_generationtask AS other
        WHERE other.owner = %(owner)s AND other.status = 'processing'
            AND other.reserved_nano_usd IS NOT NULL AND other.id <> %(task_id)s
    ) <= %(limit_nano_usd)s
"""

_SQLITE_NOW = "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW'"
_DIALECTS = {
    "sqlite": {
        "now": f"{_SQLITE_NOW})",
        "today": "DATE('NOW')",
        "month": "DATE('NOW', 'start of month')",
        "epoch": "STRFTIME('%%s', 'NOW')",
        "lease_end": f"{_SQLITE_NOW}, %(lease_seconds)s || ' seconds')",
        "expiry": f"{_SQLITE_NOW}, %(ttl_seconds)s || ' seconds')",
        "skip_locked": "",
        "in_turn": "",
        "lazily": "",
        "seconds_since_start": "MAX(0.001, (JULIANDAY('NOW') - JULIANDAY(%(started_at)s)) * 86400)",
        "num_aged": "CAST((JULIANDAY('NOW') - JULIANDAY(created_at)) * 1440 * %(rate)s AS INTEGER)",
    },
    "postgresql": {
        "now": "STATEMENT_TIMESTAMP()",
        "today": "(STATEMENT_TIMESTAMP() AT TIME ZONE 'UTC')::date",
        "month": "DATE_TRUNC('month', STATEMENT_TIMESTAMP() AT TIME ZONE 'UTC')::date",
        "epoch": "EXTRACT(EPOCH FROM STATEMENT_TIMESTAMP())",
        "lease_end": "STATEMENT_TIMESTAMP() + %(lease_seconds)s * INTERVAL '1 second'",
        "expiry": "STATEMENT_TIMESTAMP() + %(ttl_seconds)s * INTERVAL '1 second'",
        "skip_locked": "FOR UPDATE SKIP LOCKED",
        # At each commit, PostgreSQL wakes all that wait to insert the same row, for one to go on.
        "in_turn": "SELECT pg_advisory_xact_lock(hashtext('share of ' || %(owner)s));",
        "lazily": "MATERIALIZED",
        "seconds_since_start": "GREATEST(0.001, EXTRACT(EPOCH FROM "
        "STATEMENT_TIMESTAMP() - %(started_at)s::timestamptz))",
        "num_aged": "FLOOR(EXTRACT(EPOCH FROM STATEMENT_TIMESTAMP() - created_at) / 60 * %(rate)s)",
    },
}


def clock() -> float:
    """What the database's clock shows, in seconds."""
    with connection.cursor() as cursor:
        cursor.execute(_in_dialect("SELECT {epoch}"), {})
        return float(cursor.fetchone()[0])


@lru_cache(maxsize=128)
def claim_first(num_models: int = 0) -> str:
    """The statement that claims the first task of a queue.

    Not of the models `model_0` and so on, unless it has the priority `lowest_0` and so on.
    """
    conditions = [
        f" AND (model_name <> %(model_{number})s OR priority >= %(lowest_{number})s)"
        for number in range(num_models)
    ]
    return _CLAIM_FIRST.replace("{of_tasks}", "".join([_OF_QUEUE, *conditions]))


def add_use(owner: str, **use: int) -> None:
    """Add to what the owner has used today, UTC: some of NO_USE."""
    execute(ADD_USE, owner=owner, **NO_USE | use)


def execute(statement: str, **values: Any) -> int:
    """Run it with values as the database takes them; returns the number of rows changed."""
    with connection.cursor() as cursor:
        cursor.execute(_in_dialect(statement), _with_durations(values))
        return int(cursor.rowcount)


def execute_last(*statements: str, **values: Any) -> None:
    """Run the last statements of a transaction.

    PostgreSQL commits them in the same round trip: those who wait for their rows do not wait for
    this process too, which may be a busy one.
    """
    if connection.vendor == "postgresql":
        is_outermost = connection.in_atomic_block and not connection.savepoint_ids
        statements = ("; ".join([*statements, "COMMIT"] if is_outermost else statements),)
    for statement in statements:
        execute(statement, **values)


def take_turns(name: str) -> None:
    """Have other transactions that call it with the same name wait for the end of this one."""
    if connection.vendor == "postgresql":  # SQLite has one writer anyway
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [name])


def first_task(statement: str, **values: Any) -> GenerationTask | None:
    """The first task that it returns, with the columns that it names; others become attributes."""
    return first_row(GenerationTask, _in_dialect(statement), _with_durations(values))


def column_values(task: GenerationTask) -> dict[str, Any]:
    """The task's values by column, as the database takes them."""
    values = {}
    for field in GenerationTask._meta.concrete_fields:
        value = getattr(task, field.attname)
        is_plain = value is None or type(value) is str
        values[str(field.column)] = value if is_plain else field.get_db_prep_save(value, connection)
    return values


@cache
def _in_dialect(statement: str) -> str:
    # Without needless spaces: the names of its values are replaced in it each time it is run.
    return " ".join(statement.format(**_DIALECTS[connection.vendor]).split())


def _with_durations(values: dict[str, Any]) -> dict[str, Any]:
    durations = {
        "lease_seconds": settings.LEASE_SECONDS,
        "ttl_seconds": settings.TASK_TTL_SECONDS,
    }
    return durations | values
