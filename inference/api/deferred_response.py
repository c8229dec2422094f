"""Waiting for the end of a task, or of a request for a model, without holding a thread.

A view that was asked to wait answers with the state as it is, and says what to wait for. The ASGI
handler, which sees that, waits on the event loop and then asks the view again. A view that has no
answer of its own gives the handler an errand instead.
"""

import re
from typing import Protocol

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

MAX_WAIT_SECONDS = 60.0
WAIT_PARAMETER = OpenApiParameter(
    "wait", float, description=f"Seconds to wait for the end, up to {MAX_WAIT_SECONDS:.0f}."
)

# In the ASGI scope of a request that the handler makes once more.
REPEAT = "sopllm.repeat"

_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+)")


class WaitingResponse(Response):
    """A state as it is; the handler comes again when the end of `wait_for` is announced.

    It comes again in any case after `wait_seconds`, and not at all where one of them is missing.
    """

    def __init__(
        self, body: object, *, wait_for: str | None, wait_seconds: float, status: int = 200
    ) -> None:
        super().__init__(body, status=status)
        self.wait_for = wait_for if wait_seconds else None
        self.wait_seconds = wait_seconds


class Errand(Protocol):
    """Brings the answer to a request from a worker.

    All methods run where requests are answered, and raise APIException for an answer that is none.
    """

    # What the end is announced by, and how long to wait for it.
    key: str
    seconds: float

    def start(self) -> None:
        """Ask for it; the end is listened for already."""

    def collect(self) -> HttpResponse | None:
        """The answer; None while there is none."""

    def give_up(self) -> HttpResponse:
        """Nobody waits any more: the time is over, or the client is gone."""


class ErrandResponse(Response):
    """There is no answer yet: the handler runs the errand, and answers with what that brings."""

    def __init__(self, errand: Errand) -> None:
        super().__init__(status=202)
        self.errand = errand


def is_repeat(request: Request) -> bool:
    """Whether the handler asks again, after a wait: what the request changes is changed already."""
    return REPEAT in getattr(request, "scope", {})


def requested_seconds(request: Request) -> float:
    """What the client asked for by `?wait=` or `Prefer: wait=`; 0 is no wait at all."""
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
