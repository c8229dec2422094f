"""From validated fields to the tasks of a principal, as far as its key and the queue allow it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ValidationError

from inference import estimates
from inference.api import submission
from inference.api.task_serializers import MAX_KEY_LENGTH
from inference.lifecycle import submit
from inference.models import GenerationTask, RegisteredModel
from monitoring.api.errors import Conflict, LimitReached, QueueFull
from monitoring.api.principal import Principal
from monitoring.models import OwnerUse

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "maxLength": MAX_KEY_LENGTH},
    OpenApiParameter.HEADER,
    description="Gives the first answer again.",
)
# Tasks end sooner or later: a guess.
_PENDING_WAIT_SECONDS = 5


@contextmanager
def refusals() -> Iterator[None]:
    """What the lifecycle refuses, as HTTP says it."""
    try:
        yield
    except submit.IdempotencyConflictError as error:
        message = f"The idempotency key {error} was used for another request: take a new one."
        raise Conflict(message) from error
    except submit.QueueFullError as error:
        full = QueueFull()
        full.wait = estimates.wait_seconds() or full.wait
        raise full from error
    except submit.PendingLimitError as error:
        message = "You have as many pending tasks as your key allows: wait for some of them."
        raise LimitReached(message, _PENDING_WAIT_SECONDS, "max_pending_tasks") from error
    except submit.AlreadyRequeuedError as error:
        raise Conflict(f"{error} was requeued already: requeue the task that it names.") from error
    except submit.ConversationGoneError as error:
        raise Conflict("The conversation has been deleted: begin another one.") from error


def first_or_new(
    principal: Principal, fields: dict[str, Any], key: str | None = None
) -> GenerationTask:
    """The task that was submitted with the idempotency key before, else a new one, unsaved.

    A repeat is answered though its model is gone or the queue is full. Raises ValidationError
    naming the field, LimitReached, IdempotencyConflictError.
    """
    key = key or fields.get("idempotency_key")
    if key and (len(key) > MAX_KEY_LENGTH or "\0" in key):
        message = f"Use at most {MAX_KEY_LENGTH} characters, without NUL."
        raise ValidationError({"idempotency_key": [message]})
    owner = principal.owner
    if key and (first := submit.first_with_key(owner, key, submission.fingerprint(fields))):
        return first
    check_limits(principal, fields["priority"])
    task = submission.build_task(owner, fields, key, principal.limits)
    check_budget_of(principal, task)
    return task


def requeue(principal: Principal, task: GenerationTask) -> GenerationTask:
    """Submit an ended task anew, for its owner. Raises as `first_or_new` does, and Conflict."""
    if not task.has_ended:
        raise Conflict(f"The task is {task.status}: only one that has ended can be requeued.")
    check_limits(principal, task.priority)
    new = submission.again(task)
    check_budget_of(principal, new)
    with refusals():
        [accepted] = submit.resubmit([new], principal.limits.max_pending_tasks)
    return accepted


def check_budget(principal: Principal) -> None:
    """Raise LimitReached once its owner's cloud models have cost this month what they may."""
    limit = principal.limits.max_usd_per_month
    if limit is None or OwnerUse.objects.this_month(principal.owner)["cost_usd"] < limit:
        return
    message = f"The {limit:g} dollars of this month are used: come again in the next one, UTC."
    now = timezone.now()
    next_month = (_midnight(now).replace(day=1) + timedelta(days=32)).replace(day=1)
    seconds = (next_month - now).total_seconds()
    raise LimitReached(message, seconds, "max_usd_per_month")


def check_budget_of(principal: Principal, task: GenerationTask) -> None:
    """As `check_budget` does, for a task that costs money."""
    if principal.limits.max_usd_per_month is not None:
        model = RegisteredModel.objects.read(task.model_name)
        if model is not None and model.is_remote:
            check_budget(principal)


def check_priority(principal: Principal, priority: float) -> None:
    """Raise ValidationError for one that the caller's key does not allow."""
    most = principal.limits.max_priority
    if most is not None and priority > most:
        raise ValidationError({"priority": [f"Your key allows priorities up to {most:g}."]})


def check_limits(principal: Principal, priority: float) -> None:
    """Raise ValidationError or LimitReached for what the caller's key does not allow."""
    limits = principal.limits
    check_priority(principal, priority)
    if limits.max_tokens_per_day is not None:
        use = OwnerUse.objects.today(principal.owner)
        if use["prompt_tokens"] + use["completion_tokens"] >= limits.max_tokens_per_day:
            message = (
                f"Your key's {limits.max_tokens_per_day} tokens of today are used: come again "
                "after midnight, UTC."
            )
            now = timezone.now()
            seconds = (_midnight(now) + timedelta(days=1) - now).total_seconds()
            raise LimitReached(message, seconds, "max_tokens_per_day")


def _midnight(moment: datetime) -> datetime:
    """The beginning of its day, UTC."""
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
