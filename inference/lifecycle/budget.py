"""Money that tasks may cost: set aside before a call, so that many together spend no more."""

from django.db import transaction

from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import sql
from inference.lifecycle.claim import Lease


def reserve(lease: Lease, nano_usd: int | None) -> None:
    """Set aside what the attempt may cost at most, in billionths of a dollar.

    It counts while the task is processing, and what the attempt has cost from its end on. Raises
    InferenceError where the owner's month has no room for it, or nobody knows what it may cost
    (None).
    """
    task = lease.task
    limit = task.max_usd_per_month
    assert limit is not None, "without a limit nothing is set aside"
    if nano_usd is None:
        raise InferenceError(
            f"Your key has a limit of dollars, and nobody knows the price of {task.model_name}: "
            "have it registered with input_cost_per_token and output_cost_per_token.",
            ErrorCode.BUDGET_EXCEEDED,
        )
    with transaction.atomic():
        sql.take_turns(f"budget of {task.owner}")
        is_reserved = sql.execute(
            sql.RESERVE,
            task_id=task.pk,
            attempt=lease.attempt,
            owner=task.owner,
            nano_usd=nano_usd,
            limit_nano_usd=round(limit * 1e9),
        )
    if not is_reserved:
        raise InferenceError(
            f"The answer may cost {nano_usd / 1e9:.6f} dollars, for which this month's "
            f"{limit:g} have no room, with what running tasks may cost: lower max_tokens, or "
            "submit again later.",
            ErrorCode.BUDGET_EXCEEDED,
        )
