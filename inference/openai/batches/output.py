"""The output and error files of a batch, written in the order of its input."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any

from django.db import transaction
from rest_framework.exceptions import APIException, ValidationError

from inference.models import Batch, BatchTask, GenerationTask
from inference.openai import errors
from inference.openai.batches.endpoints import TASK_ENDPOINTS
from inference.openai.tasks import is_answered
from monitoring.api.errors import sentences

# Several times the choices of a line.
_MAX_ROWS = 2000
# Unless a line has more of them, as many answers are in memory at a time.
_MAX_TASKS = 100

_STOPPED = {
    Batch.StopReason.EXPIRED: "The completion window was over before this request was started.",
    Batch.StopReason.CANCELLED: "The batch was cancelled before this request had an answer.",
}


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What a file has of one line: the output's if it is a success, else that of the errors."""

    text: bytes
    is_success: bool

    @classmethod
    def of(cls, batch: Batch, line: int, custom_id: str, **fields: Any) -> "LineAnswer":
        """`fields` are its `response` or its `error`."""
        number = f"{batch.pk.removeprefix('batch_')[:16]}{line:08d}"
        head = {"id": f"batch_req_{number}", "custom_id": custom_id}
        whole = head | {"response": None, "error": None} | fields
        text = json.dumps(whole, separators=(",", ":")).encode("ascii") + b"\n"
        return cls(text, "response" in fields and fields["response"]["status_code"] == 200)


def success(body: Any, request_id: str | None = None) -> dict[str, Any]:
    """The fields of an answer as the route would give it."""
    return {"response": {"status_code": 200, "request_id": request_id, "body": body}}


def refusal(error: APIException, request_id: str | None = None) -> dict[str, Any]:
    """The fields of an error as the route would give it."""
    if isinstance(error, ValidationError):
        message = next(sentences(error.detail))
        body = errors.body(error.status_code, "validation_error", message, error.detail)
    else:
        body = errors.body_of(error)
    status = error.status_code
    return {"response": {"status_code": status, "request_id": request_id, "body": body}}


def stopped(reason: str) -> dict[str, Any]:
    """The fields of a line for which it was too late."""
    return {"error": {"code": str(reason), "message": _STOPPED[Batch.StopReason(reason)]}}


def write_answers(batch: Batch) -> bool:
    """Write those that are next in order and ready; whether there were any."""
    in_order = batch.tasks.order_by("line", "pk")
    states = list(in_order.values_list("line", "pk", "task__status")[:_MAX_ROWS])
    ready: list[int] = []
    for line, group in groupby(states, key=itemgetter(0)):
        of_line = list(group)
        is_waiting = any(status in GenerationTask.UNFINISHED for _, _, status in of_line)
        # Choices of the very last one may be missing.
        is_partial = len(states) == _MAX_ROWS and line == states[-1][0]
        if is_waiting or is_partial or (ready and len(ready) + len(of_line) > _MAX_TASKS):
            break
        ready += [pk for _, pk, _ in of_line]
    if not ready:
        return False
    rows = list(in_order.filter(pk__in=ready))
    tasks = GenerationTask.objects.in_bulk([row.task_id for row in rows if row.task_id])
    answers = [
        LineAnswer.of(batch, line, of_line[0].custom_id, **_fields(batch, of_line, tasks))
        for line, of_line in ((n, list(each)) for n, each in groupby(rows, attrgetter("line")))
    ]
    return store(batch, answers, ready)


def store(
    batch: Batch, answers: Sequence[LineAnswer], written: Sequence[int] = (), **change: Any
) -> bool:
    """Append the answers to the files, and delete the `written` rows. False without the claim.

    What is on the disk beyond the offsets in the batch's row is of a worker that was killed before
    it stored them: the same lines take its place.
    """
    assert batch.output_file is not None, "a batch in progress has its files"
    assert batch.error_file is not None, "a batch in progress has its files"
    output = b"".join(each.text for each in answers if each.is_success)
    failures = b"".join(each.text for each in answers if not each.is_success)
    if output:
        batch.output_file.write(batch.output_bytes, output)
    if failures:
        batch.error_file.write(batch.error_bytes, failures)
    num_completed = sum(each.is_success for each in answers)
    with transaction.atomic():
        is_mine = batch.store(
            output_bytes=batch.output_bytes + len(output),
            error_bytes=batch.error_bytes + len(failures),
            num_completed=batch.num_completed + num_completed,
            num_failed=batch.num_failed + len(answers) - num_completed,
            **change,
        )
        if is_mine:
            BatchTask.objects.filter(pk__in=written).delete()
    return is_mine


def _fields(
    batch: Batch, rows: Sequence[BatchTask], by_id: dict[str, GenerationTask]
) -> dict[str, Any]:
    """Of one line, whose tasks have ended, or are deleted."""
    if rows[0].error:
        return dict(rows[0].error)
    request_id = rows[0].task_id
    tasks = [by_id[row.task_id] for row in rows if row.task_id in by_id]
    failed = [task for task in tasks if not is_answered(task)]
    if len(tasks) == len(rows) and not failed:
        body = TASK_ENDPOINTS[batch.endpoint].answer(tasks, rows[0].num_choices)
        return success(body, request_id)
    if failed and failed[0].error_code is None and batch.stop_reason:
        return stopped(batch.stop_reason)
    return refusal(errors.TaskNotCompleted(failed[0] if failed else None, tasks), request_id)
