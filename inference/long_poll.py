"""Waiting for the end of a task without holding a thread.

A view that was asked to wait answers with the state as it is, and marks the response. The ASGI
handler, which sees the mark, waits on the event loop and then asks the view again.
"""

import re

from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from inference.models import GenerationTask

MAX_WAIT_SECONDS = 60.0

_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+)")


class TaskResponse(Response):
    """A task's state; `wait_for_task` and `wait_seconds` ask the handler to come again."""

    wait_for_task: str | None = None
    wait_seconds: float = 0.0


def mark(response: TaskResponse, request: Request, task: GenerationTask) -> TaskResponse:
    """Ask for a wait when the client did (`?wait=`, `Prefer: wait=`) and the task has not ended."""
    seconds = _requested_seconds(request)
    if seconds and not task.has_ended:
        response.wait_for_task = task.pk
        response.wait_seconds = seconds
    return response


def _requested_seconds(request: Request) -> float:
    text = request.query_params.get("wait")
    if text is None:
        preferred = _PREFER_WAIT.search(request.headers.get("Prefer", ""))
        return min(float(preferred[1]), MAX_WAIT_SECONDS) if preferred else 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise ValidationError({"wait": [f"Give seconds from 0 to {MAX_WAIT_SECONDS:.0f}."]})
    return seconds
