"""Running one claimed task: from the row to the provider, and what came of it back to the row."""

import logging
import time
from collections.abc import Callable
from functools import partial

from django.db import Error as DatabaseError

from inference import events, structured_output
from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import claim, finish, lease_renewer
from inference.lifecycle.claim import Lease
from inference.lifecycle.finish import Timings
from inference.lifecycle.traces import AttemptTrace
from inference.models import GenerationTask, RegisteredModel, TaskAttempt, TaskResult
from inference.providers.base import Chunks, GenerationRequest, Progress, StartOver
from inference.providers.registry import provider_for
from monitoring.events import publisher
from monitoring.metrics.counters import ITL, Increments, observe
from monitoring.streams.delta_stream import ChunkWriter

logger = logging.getLogger(__name__)

Outcome = TaskAttempt.Outcome

_TELL_SECONDS = 0.1


def execute(lease: Lease) -> None:
    """Answer a claimed task and store its end. A lost lease ends it without a trace."""
    attempt = Attempt(lease)
    while attempt.advance():
        attempt.chunks.flush_if_due()
        attempt.tell_progress_if_due()


class Attempt:
    """One attempt at a task, taken chunk by chunk; it stores its own end.

    A GPU session advances several in turn; `execute` one after the other.
    """

    def __init__(self, lease: Lease) -> None:
        """Renews the lease from now on."""
        self.lease = lease
        self.chunks = ChunkWriter(lease.task.pk, lease.attempt)
        self._started = time.monotonic()
        self._give_up_at = self._started + lease.task.request["timeout_seconds"]
        self._first_token: float | None = None
        self._latest_text = 0.0
        self._gaps: Increments = {}
        self._num_tokens_told = 0
        self._told_at = self._started
        self._text: list[str] = []
        self._progress = Progress()
        self._generation: Chunks | None = None
        self._trace = AttemptTrace(lease.task)
        lease_renewer.hold(lease)

    @property
    def task_id(self) -> str:
        return self.lease.task.pk

    def advance(self) -> bool:
        """Take the next chunk. False once the attempt has ended, and its end is stored."""
        stop: Callable[[], object] | None
        try:
            piece = next(self._generate())
            if isinstance(piece, StartOver):
                self._start_over(piece.failure)
            else:
                self._take(piece)
            stop = self._reason_to_stop()
        except StopIteration:
            stop = self._complete
        except InferenceError as failure:
            stop = partial(self._fail, failure, FinishReason.ERROR)
        except Exception:
            logger.exception("Task %s: unexpected error", self.task_id)
            message = "The worker failed unexpectedly; its log has the reason, under the task's id."
            unexpected = InferenceError(message, ErrorCode.INTERNAL_ERROR)
            stop = partial(self._fail, unexpected, FinishReason.ERROR)
        if stop is not None:
            self._end(stop)
        return stop is None

    def abandon(self) -> None:
        """Stop without storing an end: the lease runs out, and the sweep gives the task away."""
        try:
            if self._generation is not None:
                self._generation.close()
            self._take(self._progress.held_back)
            self.chunks.flush()
        finally:
            lease_renewer.release(self.lease)

    def tell_progress_if_due(self) -> None:
        """Show the feed how far it is, up to ten times a second, if it has come further."""
        num_tokens = self._progress.completion_tokens
        now = time.monotonic()
        if num_tokens == self._num_tokens_told or now - self._told_at < _TELL_SECONDS:
            return
        self._num_tokens_told, self._told_at = num_tokens, now
        events.progressed(self.lease.task, num_tokens, self._end_of_text())

    def _end_of_text(self) -> str:
        """As much as a preview shows: joining all the text each time would take ever longer."""
        pieces: list[str] = []
        length = 0
        for piece in reversed(self._text):
            pieces.append(piece)
            length += len(piece)
            if length >= events.MAX_PARTIAL_TEXT:
                break
        return "".join(reversed(pieces))

    def _generate(self) -> Chunks:
        """The provider's generator, made by the first call."""
        if self._generation is None:
            task = self.lease.task
            request = _request(task)
            self._trace.messages = request.messages
            self._generation = provider_for(_model(task)).generate(request, self._progress)
        return self._generation

    def _take(self, text: str) -> None:
        if text:
            self._note_time()
            self._text.append(text)
            self.chunks.write(text)

    def _start_over(self, failure: InferenceError) -> None:
        """Go on as the next attempt: readers are told that what they have is void."""
        lease_renewer.release(self.lease)
        lease = claim.begin_again(self.lease, failure)
        if lease is None:
            self.lease.lost = True
            return
        self._tell_trace(Outcome.FAILED, self._result(FinishReason.ERROR), failure)
        self._trace = AttemptTrace(lease.task, self._trace.messages)
        self.lease = lease
        self.chunks = ChunkWriter(lease.task.pk, lease.attempt)
        self._text = []
        self._first_token = None
        self._num_tokens_told = 0
        lease_renewer.hold(lease)

    def _note_time(self) -> None:
        """Of the first text, and how long after the one before each other one comes."""
        now = time.monotonic()
        if self._first_token is None:
            self._first_token = now
        else:
            gap_seconds = now - self._latest_text
            observe(self._gaps, self.lease.task.model_name, ITL, gap_seconds)
        self._latest_text = now

    def _reason_to_stop(self) -> Callable[[], object] | None:
        """What is to be stored when the attempt must end now; None while it may go on."""
        if self.lease.lost:
            return self._forget
        if self.lease.cancel_requested:
            return self._cancel
        if time.monotonic() > self._give_up_at:
            return self._time_out
        return None

    def _end(self, store: Callable[[], object]) -> None:
        """Free what the attempt holds, then store its end: readers see all chunks before it."""
        self.abandon()
        publisher.count(self._gaps)
        try:
            store()
        except DatabaseError as exc:
            # Others may share this worker: they go on, and the sweep has the task run again.
            logger.warning("Task %s: its end was not stored: %s", self.task_id, exc)

    def _complete(self) -> None:
        reason = self._progress.finish_reason or FinishReason.STOP
        parsed = None
        if response_format := self.lease.task.request.get("response_format"):
            try:
                parsed = structured_output.parse("".join(self._text), reason, response_format)
            except InferenceError as failure:
                self._fail(failure, reason)
                return
        result = self._result(reason, parsed)
        if finish.complete(self.lease, result, self._timings()):
            self._tell_trace(Outcome.COMPLETED, result)

    def _cancel(self) -> None:
        result = self._result(FinishReason.CANCELLED)
        if finish.finish_cancelled(self.lease, result, self._timings()):
            self._tell_trace(Outcome.CANCELLED, result)

    def _time_out(self) -> None:
        seconds = self.lease.task.request["timeout_seconds"]
        message = f"Not finished within timeout_seconds ({seconds:g}); the result has the text."
        self._fail(InferenceError(message, ErrorCode.TIMEOUT), FinishReason.TIMEOUT)

    def _forget(self) -> None:
        logger.warning("Task %s: attempt %d lost its lease", self.task_id, self.lease.attempt)

    def _fail(self, failure: InferenceError, reason: FinishReason) -> None:
        result = self._result(reason) if self._text else None
        if finish.fail(self.lease, failure, result, self._timings()):
            self._tell_trace(Outcome.FAILED, result, failure)

    def _tell_trace(
        self, outcome: Outcome, result: TaskResult | None, failure: InferenceError | None = None
    ) -> None:
        load_ms = self._progress.model_load_ms
        self._trace.ended(
            outcome, result, first_token=self._first_token, model_load_ms=load_ms, failure=failure
        )

    def _result(self, finish_reason: FinishReason, parsed: object = None) -> TaskResult:
        return TaskResult(
            text="".join(self._text),
            finish_reason=finish_reason,
            usage=self._progress.usage(),
            model=self.lease.task.model_name,
            parsed=parsed,
            extra=self._progress.extra,
        )

    def _timings(self) -> Timings:
        """Milliseconds: first token since the claim; inference without the model's loading."""
        load_ms = self._progress.model_load_ms
        elapsed_ms = (time.monotonic() - self._started) * 1000
        first = self._first_token
        return Timings(
            model_load_ms=load_ms,
            ttft_ms=None if first is None else (first - self._started) * 1000,
            inference_ms=elapsed_ms - (load_ms or 0),
        )


def _model(task: GenerationTask) -> RegisteredModel:
    model = RegisteredModel.objects.read(task.model_name)
    if model is None:
        raise InferenceError(
            f"The model {task.model_name} is no longer registered: register it and submit again.",
            ErrorCode.MODEL_NOT_FOUND,
        )
    return model


def _request(task: GenerationTask) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"{task.pk}#{task.attempt}",
        messages=task.messages(),
        params=task.request["params"],
        response_format=task.request.get("response_format"),
        context_overflow=task.request["context_overflow"],
        extra_params=task.request.get("extra_params") or {},
        has_fallback=task.next_model() is not None,
    )
