"""Advancing batches in turns: check the input, submit what there is room for, write the answers."""

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.models.functions import Now
from rest_framework.exceptions import ValidationError

from inference.api import submission
from inference.api.submitting import first_or_new
from inference.lifecycle import finish, lease_renewer, submit
from inference.lifecycle.lease_renewer import HeldRow
from inference.models import Batch, BatchError, BatchTask, GenerationTask, StoredFile
from inference.openai.batches import output, stopping
from inference.openai.batches.embeddings import answer_lines
from inference.openai.batches.endpoints import EMBEDDINGS, TASK_ENDPOINTS
from inference.openai.batches.lines import (
    Line,
    LineError,
    LineRequest,
    next_lines,
    parse,
    read_lines,
)
from inference.openai.embedding_views import embedding_request
from inference.webhooks import deliveries
from monitoring import database_clock
from monitoring.api.errors import LimitReached
from monitoring.api.principal import Limits, Principal, Scope
from monitoring.hardware import worker_identity

logger = logging.getLogger(__name__)

Status = Batch.Status
StopReason = Batch.StopReason

MAX_REQUESTS = 50_000
MAX_ERRORS = 100
# Lines that one transaction submits, tasks and all.
_MAX_LINES = 100
# Answers that wait for an earlier line's, for each task that a batch may have under way.
_MAX_WAITING_FACTOR = 4
# Between turns of a batch that has got on, and of one that waits for its tasks.
_SOON_SECONDS, _LATER_SECONDS = 0.05, 0.3
_MAX_TURN_SECONDS = 2.0
# The disk or a limit of the key is in the way.
_BLOCKED_SECONDS = 5.0
_CANCELLED_AT_ONCE = 100
_GIVEN_UP_AT_ONCE = 1000

_sessions: list[threading.Thread] = []
_changing = threading.Lock()
_suspects = threading.Lock()


class NotMineError(Exception):
    """Another worker has the batch, it is being cancelled, or this process stops."""


def run() -> None:
    """Advance the batches that are due, until there are fewer batches than threads doing this."""
    me = threading.current_thread()
    with _changing:
        if len(_sessions) == max(1, min(Batch.MAX_AT_ONCE, settings.DEFAULT_CONCURRENCY // 4)):
            return
        _sessions.append(me)
    try:
        # The newest one ends first.
        while not stopping.is_set() and _sessions.index(me) < Batch.objects.unfinished().count():
            batch = Batch.objects.claim_next(worker_identity.current())
            if batch is None:
                stopping.wait(_LATER_SECONDS)
            else:
                advance(batch)
    finally:
        with _changing:
            _sessions.remove(me)


def advance(batch: Batch) -> None:
    """One turn of a claimed batch, which then is put back, or has ended."""
    held = HeldRow(batch)
    lease_renewer.hold(held)
    try:
        pause = _turn(batch, held)
    except NotMineError:
        pause = 0.0
    except DatabaseError:
        raise  # the lease runs out
    except Exception as error:
        logger.exception("Batch %s: unexpected error", batch.pk)
        pause = _BLOCKED_SECONDS
        is_late = batch.deadline_at <= database_clock.now()
        if is_late or isinstance(error, FileNotFoundError):
            message = f"The batch cannot go on ({type(error).__name__}): create it again."
            with suppress(NotMineError):
                _end(batch, Status.FAILED, errors=[_of_file("internal_error", message)])
    finally:
        lease_renewer.release(held)
    batch.put_back(pause)  # unless it has ended


def _turn(batch: Batch, held: HeldRow) -> float:
    """Seconds until the next turn, if the batch has not ended. Raises NotMineError, OSError."""
    is_late = batch.deadline_at <= database_clock.now()
    if batch.output_file_id is None and batch.status == Status.CANCELLING:
        return _end(batch, Status.CANCELLED)
    if batch.status == Status.VALIDATING:
        if is_late:
            return _end(batch, Status.EXPIRED)
        return _validate_alone(batch, held) if batch.num_lost else _validate(batch, held)
    if batch.status == Status.IN_PROGRESS and is_late and not batch.stop_reason:
        _claimed(batch.store(stop_reason=StopReason.EXPIRED, if_status=Status.IN_PROGRESS))
    has_written = False
    while output.write_answers(batch):
        has_written = True
        _check(held)
    if batch.stop_reason:
        _stop_tasks(batch)
        _give_up_lines(batch)
    elif not _go_on(batch, held):
        return _BLOCKED_SECONDS
    if batch.tasks.exists() or next_lines(batch, 1):
        return _SOON_SECONDS if has_written else _LATER_SECONDS
    if batch.status != Status.FINALIZING:
        _claimed(batch.store(status=Status.FINALIZING, finalizing_at=Now(), if_status=batch.status))
    if batch.output_file:
        batch.output_file.complete(batch.output_bytes)
    if batch.error_file:
        batch.error_file.complete(batch.error_bytes)
    return _end(batch, _STATUS_AFTER[batch.stop_reason])


_STATUS_AFTER = {
    "": Status.COMPLETED,
    StopReason.EXPIRED: Status.EXPIRED,
    StopReason.CANCELLED: Status.CANCELLED,
}


def _end(batch: Batch, status: Status, **change: Any) -> float:
    with transaction.atomic():
        _claimed(batch.end(status, **change))
        if batch.webhook_url:
            deliveries.add_batch_delivery(batch)
    if batch.webhook_url:
        deliveries.deliver_soon(1)
    logger.info("Batch %s %s, %s requests have an answer", batch.pk, status, batch.progress)
    return 0.0


def _of_file(code: str, message: str) -> BatchError:
    return BatchError(code=code, line=None, message=message, param=None)


def _claimed(is_mine: bool) -> None:
    if not is_mine:
        raise NotMineError


def _check(held: HeldRow) -> None:
    if held.lost or stopping.is_set():
        raise NotMineError


def _validate_alone(batch: Batch, held: HeldRow) -> float:
    """Check a batch that a worker was lost at, and no other such one: it may be another's doing."""
    if batch.num_lost >= settings.MAX_ATTEMPTS:
        culprit = next(each for each in _input(batch) if each.number > batch.input_line)
        message = f"Checking it has ended the worker {batch.num_lost} times: change the line."
        return _end(batch, Status.FAILED, errors=[LineError("worker_lost", message).at(culprit)])
    if not _suspects.acquire(blocking=False):
        return _LATER_SECONDS
    try:
        return _validate(batch, held)
    finally:
        _suspects.release()


def _validate(batch: Batch, held: HeldRow) -> float:
    """Check all lines, as the route would; the batch then is in progress, or has failed.

    How far it is, is stored every hundred lines, and before each of those at which a worker was
    lost: so the one whose doing that is, is known.
    """
    found: list[BatchError] = []
    seen: set[bytes] = set()
    num_requests = checked_line = 0
    for line in _input(batch):
        _check(held)
        if held.cancel_requested:
            raise NotMineError
        num_requests += 1
        if len(found) == MAX_ERRORS or num_requests > MAX_REQUESTS:
            break
        is_hundredth = num_requests % 100 == 0
        if checked_line > batch.input_line and (batch.num_lost or is_hundredth):
            _claimed(batch.store(input_line=checked_line, num_lost=0 if is_hundredth else 1))
        try:
            _check_line(batch, line, seen)
        except LineError as error:
            found.append(error.at(line))
        except ValidationError as error:
            found.append(LineError.of_body(error).at(line))
        checked_line = line.number
    if num_requests == 0:
        found.append(_of_file("empty_file", "The file has no requests: write one a line."))
    if num_requests > MAX_REQUESTS:
        message = f"A batch has up to {MAX_REQUESTS} requests: split the file."
        found.append(_of_file("too_many_requests", message))
    if found:
        return _end(batch, Status.FAILED, errors=found)
    _begin(batch, num_requests)
    return 0.0


def _input(batch: Batch) -> Iterator[Line]:
    assert batch.input_file is not None, "it cannot be deleted before the batch has ended"
    return read_lines(batch.input_file.path, offset=0, number=0)


def _check_line(batch: Batch, line: Line, seen: set[bytes]) -> None:
    """Raises LineError, or the ValidationError of its body; `seen`: digests of the custom_ids."""
    request = parse(line, batch)
    digest = hashlib.blake2b(request.custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        message = f"{request.custom_id[:100]} is the custom_id of an earlier line, too."
        raise LineError("duplicate_custom_id", message, "custom_id")
    seen.add(digest)
    if batch.endpoint == EMBEDDINGS:
        with suppress(LimitReached):  # of the day or the month; it is asked again
            embedding_request(request.body, _principal(batch))
        return
    found = TASK_ENDPOINTS[batch.endpoint].request(request.body)
    most = batch.limits["max_pending_tasks"]
    if most is not None and len(found.submissions) > most:
        message = f"It takes {len(found.submissions)} tasks, and your key allows {most} at a time."
        raise LineError("invalid_request", message, "body.n")
    for fields in found.submissions:
        submission.build_task(batch.owner, fields, None)


def _begin(batch: Batch, num_requests: int) -> None:
    files = [
        StoredFile(
            owner=batch.owner,
            purpose=StoredFile.Purpose.BATCH_OUTPUT,
            filename=f"{batch.pk}_{name}.jsonl",
            created_at=Now(),
            # In case that it is never completed.
            expires_at=batch.deadline_at + timedelta(seconds=settings.FILE_TTL_SECONDS),
        )
        for name in ("output", "error")
    ]
    with transaction.atomic():
        StoredFile.objects.bulk_create(files)
        _claimed(
            batch.store(
                if_status=Status.VALIDATING,
                status=Status.IN_PROGRESS,
                in_progress_at=Now(),
                num_requests=num_requests,
                input_line=0,
                output_file=files[0],
                error_file=files[1],
            )
        )


def _go_on(batch: Batch, held: HeldRow) -> bool:
    """Have further lines answered. False when a limit or a worker that is gone is in the way."""
    principal = _principal(batch)
    if batch.endpoint != EMBEDDINGS:
        return _submit(batch, held, principal)
    turn_ends_at = time.monotonic() + _MAX_TURN_SECONDS
    while next_lines(batch, 1) and time.monotonic() < turn_ends_at and not held.cancel_requested:
        _check(held)
        if not answer_lines(batch, principal):
            return False
    return True


def _principal(batch: Batch) -> Principal:
    """Who has made the batch, with the limits of then."""
    return Principal(batch.pk, batch.owner, frozenset({Scope.TASKS}), limits=Limits(**batch.limits))


def _submit(batch: Batch, held: HeldRow, principal: Principal) -> bool:
    """Submit lines while there is room. False when a limit of the key or the queue forbids it."""
    while (room := _room(batch, principal.limits)) > 0:
        _check(held)
        lines = next_lines(batch, min(room, _MAX_LINES))
        if not lines:
            return True
        try:
            _submit_lines(batch, principal, lines, room)
        except (submit.PendingLimitError, submit.QueueFullError, LimitReached):
            return False
        except submit.ConversationGoneError:
            return True  # then its line has no task
    return True


def _room(batch: Batch, limits: Limits) -> int:
    """How many lines may be submitted now. Half of the pending tasks of a key are left to it."""
    most: int = settings.BATCH_MAX_TASKS
    if limits.max_pending_tasks is not None:
        most = min(most, max(1, limits.max_pending_tasks // 2))
    of_owner = BatchTask.objects.filter(batch__owner=batch.owner).unfinished().count()
    return min(most - of_owner, _MAX_WAITING_FACTOR * most - batch.tasks.count())


def _submit_lines(
    batch: Batch, principal: Principal, lines: Sequence[Line], max_tasks: int
) -> None:
    """Save the tasks of the first of the lines, and how far the batch is, both or neither.

    There are up to `max_tasks`, unless one line has more. Raises what `submit` raises, and
    NotMineError.
    """
    tasks: list[GenerationTask] = []
    rows: list[BatchTask] = []
    read: list[Line] = []
    for line in lines:
        request = parse(line, batch)
        try:
            found = TASK_ENDPOINTS[batch.endpoint].request(request.body)
            # A line may say how urgent it is.
            own = {} if request.body.get("priority") is not None else {"priority": batch.priority}
            of_line = [first_or_new(principal, fields | own) for fields in found.submissions]
        except ValidationError as error:  # as when its model was deleted meanwhile
            rows.append(_row(line, request, batch=batch, error=output.refusal(error)))
        else:
            if tasks and len(tasks) + len(of_line) > max_tasks:
                break
            tasks += of_line
            choices = {"batch": batch, "num_choices": found.num_choices}
            rows += [_row(line, request, task_id=task.pk, **choices) for task in of_line]
        read.append(line)
    store_rows = partial(_store_rows, batch, read, rows)
    if tasks:
        submit.submit(tasks, principal.limits.max_pending_tasks, store_rows)
    else:
        with transaction.atomic():
            store_rows()


def _row(line: Line, request: LineRequest, **fields: Any) -> BatchTask:
    return BatchTask(line=line.number, custom_id=request.custom_id, **fields)


def _stop_tasks(batch: Batch) -> None:
    """Cancel what has not started; of a batch that is cancelled, what runs as well."""
    tasks = GenerationTask.objects.unfinished().filter(pk__in=batch.tasks.values("task_id"))
    if batch.stop_reason == StopReason.EXPIRED:
        tasks = tasks.pending()
    for task in tasks.filter(cancel_requested=False)[:_CANCELLED_AT_ONCE]:
        finish.cancel(task)


def _give_up_lines(batch: Batch) -> None:
    """Give lines that are not submitted an error, which is written in their turn."""
    if lines := next_lines(batch, _GIVEN_UP_AT_ONCE):
        error = output.stopped(batch.stop_reason)
        rows = [_row(line, parse(line, batch), batch=batch, error=error) for line in lines]
        with transaction.atomic():
            _store_rows(batch, lines, rows)


def _store_rows(batch: Batch, lines: Sequence[Line], rows: Sequence[BatchTask]) -> None:
    """Store what became of the lines, and that these are read."""
    BatchTask.objects.bulk_create(rows)
    _claimed(batch.store(input_offset=lines[-1].end, input_line=lines[-1].number))
