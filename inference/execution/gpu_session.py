"""A GPU session: one Celery task at a time on a GPU, and many sequences in it.

The task that is claimed first is the lead: its model runs. While it does, the session admits other
pending tasks for the same model straight from the database, most urgent first, whenever a sequence
is free; their own messages find them claimed later. Nobody else touches the engine meanwhile.
"""

import faulthandler
import logging
import multiprocessing
import sys
import time

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection
from django.utils import timezone

from inference import dispatch
from inference.engine.engine import Engine
from inference.execution import gpu_lock
from inference.execution.attempt import Attempt
from inference.lifecycle import claim
from inference.lifecycle.claim import Lease
from inference.loading import loaded_models, requests
from inference.models import GenerationTask, Queue
from monitoring.streams import delta_stream

logger = logging.getLogger(__name__)

# Chunks go out, and news come in, with one round trip a step, but no more often than this: only the
# first chunk of an answer goes out at once.
_EXCHANGE_SECONDS = 0.05
# News may be lost with Redis: the database is looked at this often without any.
_LOOK_AGAIN_SECONDS = 0.5
_REARM_SECONDS = 1.0

# Set in the worker's main process when it is told to stop; its children inherit it by fork.
_draining = multiprocessing.Event()


def drain() -> None:
    """Start nothing new: the worker of this process is to stop."""
    _draining.set()


def run(rung_task_id: str) -> None:
    """Answer pending GPU tasks, most urgent first, until the one that rang is no longer pending.

    Redis knows ten priorities, the database knows all of them: so a message wakes the worker, and
    the database says which task is next.
    """
    with gpu_lock.hold(settings.GPU_INDEX):
        while not _draining.is_set() and _is_pending(rung_task_id):
            loaded_models.serve_requests()
            lease = claim.claim_most_urgent(Queue.GPU)
            if lease is None:
                return
            Session(lease).run()


def _is_pending(task_id: str) -> bool:
    return GenerationTask.objects.pending().filter(pk=task_id).exists()


class Session:
    """The attempts that share an engine, from the loading of its model to the last one's end."""

    def __init__(self, lead: Lease) -> None:
        self._model_name = lead.task.model_name
        self._start = timezone.now()
        self._attempts = [Attempt(lead)]
        self._shown: Attempt | None = None
        self._news_seen: list[str | None] = [None, None]
        self._may_join = True
        self._exchanged_at = 0.0
        self._looked_at = 0.0

    def run(self) -> None:
        """Answer the lead and its riders; whatever fails, nothing stays behind in the engine."""
        try:
            self._show_task()
            self._advance()  # loads the model and queues the lead's prompt
            if self._attempts:
                resident = loaded_models.resident(self._model_name)
                with loaded_models.in_use(resident):
                    self._run_on(resident.engine)
        finally:
            for attempt in self._attempts:
                attempt.abandon()

    def _run_on(self, engine: Engine) -> None:
        """Step, hand out, admit, until all have ended."""
        watchdog = _Watchdog()
        try:
            while self._attempts:
                watchdog.feed()
                engine.step()
                self._advance()
                self._exchange_and_admit(engine.max_num_seqs)
        finally:
            watchdog.stop()

    def _advance(self) -> None:
        """Give each attempt its new text; one that ends makes room, and may let another start."""
        running = []
        for attempt in self._attempts:
            if attempt.advance():
                running.append(attempt)
            else:
                self._may_join = True
        self._attempts = running
        self._show_task()

    def _show_task(self) -> None:
        """Say which task the GPU works on: the one that has run longest."""
        if self._attempts and self._attempts[0] is not self._shown:
            self._shown = self._attempts[0]
            gpu_lock.show_task(settings.GPU_INDEX, self._shown.task_id)

    def _exchange_and_admit(self, max_num_seqs: int) -> None:
        try:
            self._exchange()
            self._admit(max_num_seqs)
        except DatabaseError as exc:
            logger.warning("No tasks are admitted, the database does not answer: %s", exc)
            connection.close_if_unusable_or_obsolete()

    def _exchange(self) -> None:
        """One round trip: chunks out; in comes whether anything was submitted or cancelled."""
        now = time.monotonic()
        chunks = [attempt.chunks for attempt in self._attempts]
        is_first_due = any(each.is_first_due for each in chunks)
        if now - self._exchanged_at < _EXCHANGE_SECONDS and not is_first_due:
            return
        self._exchanged_at = now
        submitted, cancelled = delta_stream.send(chunks, read=dispatch.GPU_NEWS_KEYS)
        for attempt in self._attempts:
            attempt.tell_progress_if_due()
        if submitted != self._news_seen[0]:
            self._may_join = True
        if cancelled != self._news_seen[1]:
            # The lease keeper would learn of it too, a little later.
            claim.refresh([attempt.lease for attempt in self._attempts])
        self._news_seen = [submitted, cancelled]

    def _admit(self, max_num_seqs: int) -> None:
        """Claim riders while there are free sequences, and it is the model's turn."""
        now = time.monotonic()
        if not self._may_join and now - self._looked_at < _LOOK_AGAIN_SECONDS:
            return
        self._may_join = False
        self._looked_at = now
        while len(self._attempts) < max_num_seqs and self._is_open():
            lease = claim.claim_rider(Queue.GPU, self._model_name, self._start)
            if lease is None:
                return
            rider = Attempt(lease)
            if rider.advance():
                self._attempts.append(rider)

    def _is_open(self) -> bool:
        """Not when this worker stops, and not before models that are to be loaded or unloaded."""
        if _draining.is_set():
            return False
        return not requests.are_pending()


class _Watchdog:
    """Ends the process, with the stacks of all threads, when a step of the engine never returns.

    Nothing else can: the lease of a task that hangs in native code is renewed by another thread.
    """

    def __init__(self) -> None:
        self._fed_at = float("-inf")

    def feed(self) -> None:
        """Say that the process lives; the alarm is set anew about once a second."""
        now = time.monotonic()
        if now - self._fed_at >= _REARM_SECONDS:
            self._fed_at = now
            limit = settings.STEP_TIMEOUT_SECONDS + _REARM_SECONDS
            # Celery puts a logger in the place of sys.stderr, which has no descriptor.
            stderr = sys.__stderr__ or sys.stderr
            faulthandler.dump_traceback_later(limit, exit=True, file=stderr)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
