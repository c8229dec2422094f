"""The tasks of a request, one for each choice: submitted together, and cancelled together."""

from collections.abc import Sequence
from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request

from inference.api.submitting import IDEMPOTENCY_KEY, first_or_new, refusals
from inference.lifecycle import finish, submit
from inference.models import MAX_PRIORITY, GenerationTask
from inference.task_body import was_cut
from monitoring.api.principal import principal_of

# Of requests that become tasks.
PRIORITY = OpenApiParameter(
    "X-Priority",
    {"type": "number", "minimum": 0, "maximum": MAX_PRIORITY},
    OpenApiParameter.HEADER,
    description="The higher, the sooner.",
)
HEADERS = [PRIORITY, IDEMPOTENCY_KEY]


def submitted(request: Request, submissions: Sequence[dict[str, Any]]) -> list[GenerationTask]:
    """A task for each of the validated fields, all or none.

    Or those that were submitted with the same Idempotency-Key before. Raises ValidationError naming
    the field, UnknownModelError, Conflict, LimitReached, QueueFull.
    """
    principal, tasks = principal_of(request), []
    key = request.headers.get("Idempotency-Key")
    if (priority := requested_priority(request)) is not None:
        submissions = [each | {"priority": priority} for each in submissions]
    with refusals():
        for index, fields in enumerate(submissions):
            own_key = f"{key}#{index}" if key and index else key
            tasks.append(first_or_new(principal, fields, own_key))
        return submit.submit(tasks, principal.limits.max_pending_tasks)


def is_answered(task: GenerationTask) -> bool:
    """Whether it has an answer that clients of OpenAI's API expect to get.

    A structured output that was cut at max_tokens is one: it has the `finish_reason` length.
    """
    return task.status == GenerationTask.Status.COMPLETED or was_cut(task)


def cancel(tasks: Sequence[GenerationTask]) -> None:
    """Cancel those that have not ended and that nobody can ask for again.

    A client that has sent an Idempotency-Key may come back for its answer.
    """
    for task in tasks:
        if not task.idempotency_key:
            finish.cancel(task)


def requested_priority(request: Request) -> float | None:
    """That of the header X-Priority; None without it. Raises ValidationError."""
    text = request.headers.get("X-Priority")
    if text is None:
        return None
    try:
        priority = float(text)
    except ValueError:
        priority = -1
    if not 0 <= priority <= MAX_PRIORITY:
        message = f"Give a number from 0 to {MAX_PRIORITY}."
        raise ValidationError({"X-Priority": [message]})
    return priority
