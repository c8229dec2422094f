"""The statements of a task's life, each compiled once; only `lifecycle.py` runs them."""

from datetime import timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import F
from django.db.models.functions import Now

from inference.lifecycle.statements import (
    Compiled,
    Parameter,
    Statement,
    compile_insert,
    compile_select,
    compile_update,
)
from inference.models import GenerationTask, TaskAttempt
from monitoring.models import EndedTask


def lease_end() -> Any:
    """When a lease that is given or renewed now runs out."""
    return Now() + timedelta(seconds=settings.LEASE_SECONDS)


def end_fields(status: GenerationTask.Status | Parameter) -> dict[str, Any]:
    """The fields that every end of a task sets."""
    return {
        "status": status,
        "finished_at": Now(),
        "updated_at": Now(),
        "expires_at": Now() + timedelta(seconds=settings.TASK_TTL_SECONDS),
        "lease_until": None,
    }


def _compile_submit() -> Compiled:
    row: Any = GenerationTask
    fields = GenerationTask._meta.concrete_fields
    return compile_insert(row(**{f.attname: Parameter(f.attname, f) for f in fields}))


def _compile_first_in_line(*conditions: str) -> Compiled:
    """Of the tasks that may start, the one that goes first: its id, model and priority."""
    parameters = {name: Parameter(name) for name in conditions}
    tasks = GenerationTask.objects.claimable().filter(**parameters).most_urgent_first()
    return compile_select(tasks.values_list("pk", "model_name", "priority")[:1])


def _compile_claim() -> Compiled:
    return compile_update(
        GenerationTask.objects.claimable().filter(pk=Parameter("task_id")),
        status=GenerationTask.Status.PROCESSING,
        attempt=F("attempt") + 1,
        worker=Parameter("worker"),
        lease_until=lease_end(),
        started_at=Now(),
        updated_at=Now(),
    )


def _compile_held() -> Compiled:
    """The tasks that a worker runs: id, attempt, and whether a cancel was asked for."""
    held = GenerationTask.objects.filter(
        status=GenerationTask.Status.PROCESSING, worker=Parameter("worker")
    )
    return compile_select(held.values_list("pk", "attempt", "cancel_requested"))


def _compile_finish() -> Compiled:
    attempt = Parameter("attempt", models.IntegerField())
    mine = GenerationTask.objects.filter(pk=Parameter("task_id"), attempt=attempt)
    return compile_update(
        mine.filter(status=GenerationTask.Status.PROCESSING),
        result=Parameter("result", models.JSONField()),
        error=Parameter("error"),
        error_code=Parameter("error_code"),
        model_load_ms=Parameter("model_load_ms", models.FloatField()),
        ttft_ms=Parameter("ttft_ms", models.FloatField()),
        inference_ms=Parameter("inference_ms", models.FloatField()),
        **end_fields(Parameter("status")),
    )


def _compile_attempt() -> Compiled:
    row: Any = TaskAttempt
    return compile_insert(
        row(
            task_id=Parameter("task_id"),
            number=Parameter("number", models.IntegerField()),
            worker=Parameter("worker"),
            model_name=Parameter("model_name"),
            started_at=Parameter("started_at", models.DateTimeField()),
            ended_at=Now(),
            outcome=Parameter("outcome"),
            error=Parameter("error"),
            error_code=Parameter("error_code"),
        )
    )


def _compile_ended() -> Compiled:
    """The task's figures, for the statistics."""
    row: Any = EndedTask
    fields = [f for f in EndedTask._meta.concrete_fields if f.name not in ("id", "ended_at")]
    return compile_insert(row(ended_at=Now(), **{f.name: Parameter(f.name, f) for f in fields}))


SUBMIT = Statement(_compile_submit)
FIRST_IN_LINE = Statement(partial(_compile_first_in_line, "queue"))
FIRST_OF_MODEL = Statement(partial(_compile_first_in_line, "queue", "model_name"))
CLAIM = Statement(_compile_claim)
HELD = Statement(_compile_held)
FINISH = Statement(_compile_finish)
ADD_ATTEMPT = Statement(_compile_attempt)
ADD_ENDED = Statement(_compile_ended)
