"""A GPU session: one Celery task at a time on the GPUs of a worker, and many sequences in it.

The model of the first request runs. While it does, pending tasks for the same model join straight
from the database, most urgent first, whenever a sequence is free; their own messages find them
claimed later. A task whose last attempt was lost runs alone: if its prompt ends the worker, no
other is lost with it. The prompt of one task at a time is made in a thread of the session, while
the steps of the engine go on. All text leaves the engine as the outputs of its steps, handed to the
attempts by request id. Nothing else touches the engine meanwhile.
"""

import faulthandler
import logging
import math
import multiprocessing
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import close_old_connections, connection, connections

from inference import dispatch
from inference.engine.answer_parser import AnswerParser
from inference.engine.engine import Engine, StepOutput
from inference.engine.sequence import FinishReason, Sequence
from inference.execution import gpu_lock, placement
from inference.execution.attempt import Attempt
from inference.execution.cost_meter import CostMeter
from inference.execution.pausing import PausedAttempts
from inference.lifecycle import claim, lease_renewer
from inference.lifecycle.claim import Lease
from inference.loading import kept_caches, requests
from inference.loading.loaded_engines import LoadedEngine, loaded_engines
from inference.models import GenerationTask, Queue
from inference.providers import local
from monitoring import database_clock
from monitoring.streams import delta_stream

logger = logging.getLogger(__name__)

_Prepared = tuple[Sequence, AnswerParser | None]

# Deltas go out, and news come in, with one round trip a step, but no more often than this: only the
# first delta of an answer goes out at once.
_EXCHANGE_SECONDS = 0.05
# The database is polled this often for tasks that may join, in case Redis lost the news of one;
# at once when a task was submitted, or has ended and left room.
_LOOK_AGAIN_SECONDS = 0.5
# A client that asks one thing after another sends its next task at once, and being woken by its
# message takes longer than waiting for it here. Redis is asked for news so often meanwhile.
_LINGER_SECONDS = 0.05
_LINGER_POLL_SECONDS = 0.002
# The running answers wait so long for the prompt of a task that joins: most take less, and two
# threads that share the GIL would take longer.
_PREPARE_SECONDS = 0.02
_SWITCH_SECONDS = 0.0005
_REARM_SECONDS = 1.0
_PASSED_ON_POLL_SECONDS = 0.1
# Loading a model may take as long as so many steps.
_LOAD_STEPS = 10

# Set in the worker's main process when it shuts down; its children inherit it by fork.
_draining = multiprocessing.Event()


def drain() -> None:
    """Start nothing new: the worker of this process is to stop."""
    _draining.set()


def run(enqueued_task_id: str) -> None:
    """Answer pending GPU tasks, most urgent first, until the enqueued one is no longer pending.

    Redis knows ten priorities, the database knows all of them: so a message wakes the worker, and
    the database says which task is next. One whose model another worker has in memory is left to it
    for a while, during which this worker takes what else there is.
    """
    was_passed_on = False
    with gpu_lock.hold(settings.GPU_INDEXES):
        pending = GenerationTask.objects.pending().filter(pk=enqueued_task_id)
        while not _draining.is_set() and (task := pending.first()) is not None:
            loaded_engines.serve_requests()
            left = placement.left_to_others(loaded_engines.names)
            if lease := claim.claim_most_urgent(Queue.GPU, dict.fromkeys(left, math.inf)):
                Session(lease.task.model_name).run(lease)
                continue
            if task.model_name not in left:
                return
            if not was_passed_on:  # the other one may have nothing else to wake it
                was_passed_on = dispatch.enqueue(dispatch.generate([task]))
            time.sleep(_PASSED_ON_POLL_SECONDS)


class Session:
    """The attempts that share an engine, from the loading of its model to the last one's end."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        # When the session last took the task whose turn it was.
        self._in_turn_at = database_clock.now()
        self._is_for_one = False
        self._loaded: LoadedEngine | None = None
        self._meter: CostMeter
        # By request id, the one that has run longest first.
        self._attempts: dict[str, Attempt] = {}
        self._paused = PausedAttempts(self._attempts)
        # A claimed task of another model, for which all are paused.
        self._urgent: Lease | None = None
        # A step waits for the GIL after each of its calls into llama.cpp, two a sequence, while a
        # template is rendered: 64 sequences would wait for half a second in all by the usual 5 ms.
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._preparer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._preparing: tuple[Attempt, Future[_Prepared]] | None = None
        self._shown: Attempt | None = None
        self._news_seen: list[str | None] = [None, None]
        self._exchanged_at = 0.0
        self._look_again_at = 0.0
        self._go_on_until = 0.0
        self._watchdog = _Watchdog()

    def run(self, first: Lease) -> None:
        """Answer the first task and those that join; whatever fails, the engine is empty then."""
        self._is_for_one = first.task.was_lost
        try:
            self._begin(first)
            while self._loaded is not None and self._attempts:
                self._meter = CostMeter(self._loaded.read_joules)
                with loaded_engines.in_use(self._loaded):
                    self._run_on(self._loaded)
                self._change_model()
        finally:
            self._add_prepared(None)
            self._preparer.submit(connections.close_all)
            self._preparer.shutdown()
            self._watchdog.stop()
            for request_id, attempt in self._attempts.items():
                if last := self._abort(request_id):
                    attempt.read(last.text)
                attempt.abandon()

    def _begin(self, lease: Lease) -> None:
        """Have a task's prompt made, for whose engine the first one loads the model.

        If that fails, the task fails, and no other.
        """
        attempt = Attempt(lease)
        self._attempts[attempt.request_id] = attempt
        self._show_task()
        try:
            started = time.monotonic()
            self._loaded = self._load(attempt)
            if self._loaded.loaded_at >= started:
                attempt.progress.model_load_ms = (time.monotonic() - started) * 1000
        except Exception as error:  # noqa: BLE001 (stored as the task's failure)
            del self._attempts[attempt.request_id]
            attempt.fail(error)
            return
        self._preparing = attempt, self._preparer.submit(_prepare, attempt, self._loaded)

    def _load(self, attempt: Attempt) -> LoadedEngine:
        """The engine that the attempt runs in. Raises InferenceError."""
        self._watchdog.feed()
        model = attempt.read_model()
        self._watchdog.feed(_LOAD_STEPS)
        loaded = loaded_engines.load(model)
        self._watchdog.feed()
        return loaded

    def _change_model(self) -> None:
        """Go on with the model of an urgent task, or of what was paused for the longest."""
        self._loaded = None
        if self._urgent is not None:
            lease, self._urgent = self._urgent, None
            self._model_name = lease.task.model_name
            self._begin(lease)
        while self._loaded is None and self._attempts:
            attempt = next(iter(self._attempts.values()))
            self._model_name = attempt.lease.task.model_name
            try:
                self._loaded = self._load(attempt)
            except Exception as error:  # noqa: BLE001 (stored as the failure of its tasks)
                for each in self._paused.of_model(self._model_name):
                    self._paused.fail(each, error)

    def _abort(self, request_id: str) -> StepOutput | None:
        """End a sequence, whether it runs or is paused; None while its prompt is being made."""
        last = self._paused.abort(request_id)
        if last is not None or self._loaded is None:
            return last
        return self._loaded.engine.abort(request_id, FinishReason.CANCELLED)

    def _add_prepared(self, seconds: float | None) -> None:
        """Queue the prompt that is being made, once it is ready, in the engine.

        Wait for it so many seconds at most, None: as long as it takes.
        """
        if self._preparing is None or self._loaded is None:
            return
        attempt, prepared = self._preparing
        if wait([prepared], seconds).not_done:
            return
        self._preparing = None
        is_wanted = attempt.request_id in self._attempts
        try:
            sequence, attempt.parser = prepared.result()
            sequence.is_urgent = attempt.is_urgent
            self._loaded.engine.add(sequence)
        except Exception as error:  # noqa: BLE001 (stored as the task's failure)
            if is_wanted:
                del self._attempts[attempt.request_id]
                attempt.fail(error)
        else:
            if not is_wanted:
                self._loaded.engine.abort(attempt.request_id, FinishReason.CANCELLED)

    def _run_on(self, loaded: LoadedEngine) -> None:
        """Abort what must stop, step, hand out, let others join, until all have ended.

        Or until all that are left are paused, and it is another model's turn.
        """
        engine = loaded.engine
        while self._attempts or time.monotonic() < self._go_on_until:
            if not self._attempts:
                time.sleep(_LINGER_POLL_SECONDS)
            if self._preparing is None:  # what has begun to be prepared was given its time then
                self._watchdog.feed()
            for attempt in [each for each in self._attempts.values() if each.must_stop]:
                if last := self._abort(attempt.request_id):
                    self._hand_out(last)
                else:  # its prompt is being made
                    del self._attempts[attempt.request_id]
                    attempt.stop()
            self._add_prepared(0 if engine.num_unfinished else _LOOK_AGAIN_SECONDS)
            self._paused.make_room(loaded, self._meter)
            if self._attempts:
                self._step(engine)
            self._show_task()
            try:
                self._exchange()
                self._admit(loaded)
            except DatabaseError as exc:
                logger.warning("No task can join, the database does not answer: %s", exc)
                connection.close_if_unusable_or_obsolete()
                self._go_on_until = 0.0
            if self._paused:
                if self._urgent is None and self._preparing is None:
                    self._paused.resume(loaded)
                if len(self._paused) == len(self._attempts):
                    return

    def _step(self, engine: Engine) -> None:
        """Compute one batch, and say whose time it was before any of them ends."""
        started = time.monotonic()
        outputs = engine.step()
        self._meter.add_step(time.monotonic() - started, engine.num_step_tokens)
        for output in outputs:
            self._hand_out(output)

    def _hand_out(self, output: StepOutput) -> None:
        """Hand an output of the engine to its attempt; one that ends makes room for another."""
        attempt = self._attempts[output.request_id]
        attempt.progress.completion_tokens += output.num_new_tokens
        attempt.progress.cached_tokens = output.num_cached_tokens
        attempt.progress.accepted_prediction_tokens = output.num_accepted_drafts
        attempt.progress.rejected_prediction_tokens = output.num_rejected_drafts
        if output.logprobs:
            attempt.progress.logprobs += local.openai_logprobs(output.logprobs)
        attempt.read(output.text, output.num_new_tokens)
        if output.finish_reason is None:
            return
        del self._attempts[output.request_id]
        attempt.progress.cost += self._meter.take(output.request_id)
        self._look_again_at = 0.0
        self._go_on_until = 0.0 if self._is_for_one else time.monotonic() + _LINGER_SECONDS
        if output.error is not None:
            attempt.fail(local.inference_error(output.error))
        elif output.finish_reason == FinishReason.CANCELLED:
            attempt.stop()
        else:
            attempt.progress.finish_reason = output.finish_reason
            if output.stop_sequence is not None:
                attempt.progress.extra["stop_sequence"] = output.stop_sequence
            attempt.complete()
            if self._loaded is not None:
                kept_caches.keep(self._loaded, attempt.lease.task, attempt.request_id)

    def _show_task(self) -> None:
        """Say which task the GPU works on: the one that has run longest."""
        running = (each for each in self._attempts.values() if each.request_id not in self._paused)
        oldest = next(running, None)
        if oldest is not None and oldest is not self._shown:
            self._shown = oldest
            gpu_lock.show_task(settings.GPU_INDEXES, oldest.task_id)

    def _exchange(self) -> None:
        """One round trip to Redis: send deltas, read whether tasks were submitted or cancelled."""
        now = time.monotonic()
        attempts = self._attempts.values()
        is_first_due = any(attempt.deltas.is_first_due for attempt in attempts)
        is_early = now - self._exchanged_at < _EXCHANGE_SECONDS
        if self._attempts and is_early and not is_first_due:
            return
        self._exchanged_at = now
        writers = [attempt.deltas for attempt in attempts]
        submitted, cancelled = delta_stream.send(writers, read=dispatch.GPU_NEWS_KEYS)
        for attempt in attempts:
            attempt.publish_progress_if_due()
        if submitted != self._news_seen[0]:
            self._look_again_at = 0.0
        if cancelled != self._news_seen[1]:
            # The lease renewer would learn of it too, a little later.
            lease_renewer.refresh([attempt.lease for attempt in attempts])
        self._news_seen = [submitted, cancelled]

    def _admit(self, loaded: LoadedEngine) -> None:
        """Claim tasks that join while there are free sequences, and it is the model's turn.

        And urgent ones, if others can be paused for them.
        """
        now = time.monotonic()
        if self._is_for_one or self._preparing is not None or now < self._look_again_at:
            return
        self._look_again_at = now + _LOOK_AGAIN_SECONDS
        while not _draining.is_set():
            has_free_sequence = len(self._attempts) < loaded.engine.max_num_seqs
            urgent = claim.first_urgent(Queue.GPU)
            if urgent is None and (self._paused or not has_free_sequence):
                return
            if requests.are_pending():  # models to load or unload come first
                return
            if urgent is None:
                lease = claim.claim_joining(Queue.GPU, self._model_name, self._in_turn_at)
            else:
                lease = self._claim_urgent(urgent, loaded.engine)
            if lease is None:
                if GenerationTask.objects.pending().filter(queue=Queue.GPU).exists():
                    self._go_on_until = 0.0
                return
            if lease.task.model_name != self._model_name:
                self._paused.pause_all(loaded, self._meter)
                self._urgent = lease
                return
            if lease.was_in_turn:
                self._in_turn_at = database_clock.now()
            self._begin(lease)
            self._add_prepared(_PREPARE_SECONDS)
            if self._preparing is not None:  # the next one is whichever is most urgent then
                self._look_again_at = 0.0
                return

    def _claim_urgent(self, task: GenerationTask, engine: Engine) -> Lease | None:
        """Take an urgent task if it can run now; None when it has to wait."""
        if task.model_name == self._model_name:
            num_urgent = sum(attempt.is_urgent for attempt in self._attempts.values())
            can_run = num_urgent < engine.max_num_seqs
        else:
            can_run = self._paused.can_pause_all(engine)
        return claim.claim(task.pk) if can_run else None


def _prepare(attempt: Attempt, loaded: LoadedEngine) -> _Prepared:
    try:
        return local.new_sequence(loaded, attempt.read_request(), attempt.progress)
    finally:
        close_old_connections()


class _Watchdog:
    """Ends the process, with the stacks of all threads, when a part of a session never returns.

    Nothing else can: the lease of a task that hangs in native code is renewed by another thread.
    """

    def __init__(self) -> None:
        self._fed_at = float("-inf")
        self._num_steps = 0

    def feed(self, num_steps: int = 1) -> None:
        """Re-arm the alarm, about once a second; what comes may take as long as so many steps."""
        now = time.monotonic()
        if num_steps != self._num_steps or now - self._fed_at >= _REARM_SECONDS:
            self._fed_at, self._num_steps = now, num_steps
            limit = num_steps * settings.STEP_TIMEOUT_SECONDS + _REARM_SECONDS
            # Celery puts a logger in the place of sys.stderr, which has no descriptor.
            stderr = sys.__stderr__ or sys.stderr
            faulthandler.dump_traceback_later(limit, exit=True, file=stderr)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._num_steps = 0
