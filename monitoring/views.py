"""The monitoring routes: validate, call one thing, respond."""

import logging
import re
from datetime import date, timedelta
from typing import Annotated, TypedDict

import redis
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from monitoring.api import query_parameters
from monitoring.api.errors import RedisUnavailable
from monitoring.api.permissions import needs
from monitoring.api.principal import Scope, principal_of
from monitoring.events import log
from monitoring.events.messages import EventPage, event_message
from monitoring.hardware import gpu as gpu_stats
from monitoring.hardware.gpu import GPUStats
from monitoring.health import report as health_report
from monitoring.health.report import Health
from monitoring.logs import service_log
from monitoring.logs.service_log import LogEntry
from monitoring.metrics import stats as statistics
from monitoring.metrics.stats import Stats
from monitoring.models import KEPT_DAYS

_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LOG_PARAMETERS = [
    query_parameters.LIMIT,
    OpenApiParameter("level", str, enum=_LOG_LEVELS, description="this, and what is more severe"),
    OpenApiParameter("task_id", str),
    OpenApiParameter("before", str, description="the id of an entry: only older ones"),
]
_STATS_PARAMETERS = [
    OpenApiParameter("date", date, description="one of the last 7 days, in UTC"),
    query_parameters.number_parameter("days", 1, KEPT_DAYS, "the last one is today", 1),
]
_MAX_SEQ = 10**18 - 1
_EVENT_PARAMETERS = [
    query_parameters.number_parameter(
        "after", 0, _MAX_SEQ, "the `seq` of an answer or event; 0: the oldest", 0
    ),
    query_parameters.LIMIT,
]
# An id of a Redis stream: two numbers of 64 bits.
_ENTRY_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


class LogPage(TypedDict):
    """Newest first; `results` is the same list as `logs`."""

    logs: list[LogEntry]
    results: list[LogEntry]
    next: Annotated[str, "uri"] | None
    previous: Annotated[str, "uri"] | None


@extend_schema(responses=dict.fromkeys((200, 503), Health))
@needs(Scope.MONITOR)
@api_view(["GET"])
def health(request: Request) -> Response:
    """How each component is: 200 healthy or degraded, 503 unhealthy."""
    query_parameters.refuse_unknown(request, ())
    report = health_report.check()
    return Response(report, status=503 if report["status"] == "unhealthy" else 200)


@extend_schema(responses={200: GPUStats})
@needs(Scope.MONITOR)
@api_view(["GET"])
def gpu(request: Request) -> Response:
    """The GPUs of all nodes, who works on them and which models they hold."""
    query_parameters.refuse_unknown(request, ())
    return Response(gpu_stats.stats())


@extend_schema(parameters=_LOG_PARAMETERS, responses={200: LogPage})
@needs(Scope.TASKS, Scope.MONITOR)
@api_view(["GET"])
def logs(request: Request) -> Response:
    """What all processes have logged, the newest first: the last 10,000 records of 7 days.

    Of your own tasks; with the scope `monitor` everything.
    """
    query_parameters.refuse_unknown(request, ("limit", "level", "task_id", "before"))
    params = request.query_params
    level, before = params.get("level", "INFO"), params.get("before")
    if level not in _LOG_LEVELS:
        raise ValidationError({"level": [f"Choose one of {', '.join(_LOG_LEVELS)}."]})
    if before is not None and not _ENTRY_ID.fullmatch(before):
        raise ValidationError({"before": ["Give the id of an entry, as `next` does."]})
    limit = query_parameters.limit(request)
    min_level = logging.getLevelNamesMapping()[level]
    try:
        owner = principal_of(request).visible_owner
        entries, older = service_log.read(limit, min_level, params.get("task_id"), before, owner)
    except redis.RedisError as exc:
        raise RedisUnavailable from exc
    here = request.build_absolute_uri()
    following = None if older is None else replace_query_param(here, "before", older)
    return Response(LogPage(logs=entries, results=entries, next=following, previous=None))


@extend_schema(parameters=_EVENT_PARAMETERS, responses={200: EventPage})
@needs(Scope.TASKS, Scope.MONITOR)
@api_view(["GET"])
def events(request: Request) -> Response:
    """What happened after an event, in order; ask again after the `seq` of the answer.

    `has_gap` when some of it is no longer kept. A page reads `limit` events and shows those that
    you see: yours and everyone's, with the scope `monitor` all. `next` is not null where there are
    more.
    """
    query_parameters.refuse_unknown(request, ("after", "limit"))
    after = query_parameters.whole_number(request, "after", 0, 0, _MAX_SEQ)
    try:
        excerpt = log.read(after, query_parameters.limit(request))
    except redis.RedisError as exc:
        raise RedisUnavailable from exc
    owner = principal_of(request).visible_owner
    visible = [event_message(event) for event in excerpt.events if event.is_visible_to(owner)]
    here = request.build_absolute_uri()
    page = EventPage(
        events=visible,
        results=visible,
        next=replace_query_param(here, "after", excerpt.end_seq) if excerpt.has_more else None,
        previous=None,
        seq=excerpt.end_seq,
        has_gap=excerpt.has_gap,
    )
    return Response(page)


@extend_schema(parameters=_STATS_PARAMETERS, responses={200: Stats})
@needs(Scope.TASKS, Scope.MONITOR)
@api_view(["GET"])
def stats(request: Request) -> Response:
    """The tasks that ended on a day, or in the last days up to now: today's by default.

    Your own; with the scope `monitor` those of all owners.
    """
    query_parameters.refuse_unknown(request, ("date", "days"))
    if {"date", "days"} <= request.query_params.keys():
        raise ValidationError({"date": ["Give either date or days, not both."]})
    owner = principal_of(request).visible_owner
    if "date" in request.query_params:
        day = _day(request)
        return Response(statistics.read(day, day, owner))
    num_days = query_parameters.whole_number(request, "days", 1, 1, KEPT_DAYS)
    today = statistics.today()
    return Response(statistics.read(today - timedelta(days=num_days - 1), today, owner))


def _day(request: Request) -> date:
    """The day that is asked for, if there are statistics of all of it. Raises ValidationError."""
    today = statistics.today()
    days = [today - timedelta(days=age) for age in range(KEPT_DAYS)]
    named = {day.isoformat(): day for day in days}
    if (text := request.query_params["date"]) not in named:
        message = f"Give a day in UTC from {days[-1]} to {today}."
        raise ValidationError({"date": [message]})
    return named[text]
