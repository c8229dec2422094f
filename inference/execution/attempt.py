"""Running one claimed task: from its row to the provider, and the end back into the row."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from django.db import InterfaceError, OperationalError

from conversations.models import ToolCall, ToolFunction
from inference import events, structured_output, tools
from inference.engine.answer_parser import AnswerParser
from inference.engine.deltas import AnswerDelta, Reasoning, ToolCallDelta
from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError, RetryLater
from inference.lifecycle import claim, finish, lease_renewer
from inference.lifecycle.claim import Lease
from inference.lifecycle.finish import Timings
from inference.lifecycle.traces import AttemptTrace
from inference.models import NO_COST, GenerationTask, RegisteredModel, TaskAttempt, TaskResult
from inference.providers.base import GenerationRequest, Progress
from inference.providers.registry import provider_class
from inference.task_log import log
from monitoring.metrics import counters
from monitoring.metrics.counters import ITL, Increments, observe
from monitoring.streams.delta_stream import DeltaWriter

logger = logging.getLogger(__name__)

Outcome = TaskAttempt.Outcome

_PROGRESS_SECONDS = 0.1
_DATABASE_IS_AWAY = (OperationalError, InterfaceError)
_UNSTORABLE = InferenceError(
    "The answer has something that the database does not take; the worker's log has the reason, "
    "under the task's id.",
    ErrorCode.INTERNAL_ERROR,
)


class Attempt:
    """One attempt at a task: it takes the text that is generated for it, and stores its own end.

    It ends once, by `complete`, `fail`, `put_back`, `stop` or `abandon`.
    """

    def __init__(self, lease: Lease) -> None:
        """Renews the lease from now on."""
        self.lease = lease
        self.progress = Progress()
        self.deltas = DeltaWriter(lease.task.pk, lease.attempt)
        # Tells text, reasoning and tool calls apart; None where all is text, or told apart already.
        self.parser: AnswerParser | None = None
        self._started = time.monotonic()
        self._give_up_at = self._started + lease.task.request["timeout_seconds"]
        self._paused_at: float | None = None
        self._first_token: float | None = None
        self._latest_text = 0.0
        self._itl: Increments = {}
        self._num_tokens_published = 0
        self._published_at = self._started
        self._text: list[str] = []
        self._reasoning: list[str] = []
        # Id, name and arguments of each.
        self._tool_calls: list[tuple[str, str, list[str]]] = []
        self._num_logprobs_told = 0
        self._trace = AttemptTrace(lease.task)
        lease_renewer.hold(lease)

    @property
    def task_id(self) -> str:
        return self.lease.task.pk

    @property
    def request_id(self) -> str:
        """Names the attempt: a lost one may still be running when the next one starts."""
        return f"{self.task_id}#{self.lease.attempt}"

    def read_model(self) -> RegisteredModel:
        """The model to run.

        Raises InferenceError for one that is gone, or that runs elsewhere by now.
        """
        task = self.lease.task
        model = RegisteredModel.objects.read(task.model_name)
        if model is None:
            raise InferenceError(
                f"The model {task.model_name} is no longer registered: register it and submit"
                " again.",
                ErrorCode.MODEL_NOT_FOUND,
            )
        if provider_class(model.provider).queue != task.queue:
            raise InferenceError(
                f"The model {task.model_name} was registered anew as one of another kind: submit"
                " again.",
                ErrorCode.INVALID_REQUEST,
            )
        return model

    def read_request(self) -> GenerationRequest:
        """What the model is asked, with the conversation as it is now."""
        task = self.lease.task
        request = GenerationRequest(
            request_id=self.request_id,
            messages=task.messages(),
            params=task.request["params"],
            owner=task.owner,
            conversation_id=task.conversation_id,
            prompt_cache_key=task.request.get("prompt_cache_key"),
            priority=task.priority,
            is_raw=task.request.get("is_raw", False),
            response_format=task.request.get("response_format"),
            tools=task.request.get("tools"),
            context_overflow=task.request["context_overflow"],
            extra_params=task.request.get("extra_params") or {},
            has_fallback=task.next_model() is not None,
            num_retries=task.request.get("num_retries", 0),
        )
        if task.conversation is not None and not task.request.get("messages"):
            self.lease.history_end = task.conversation.history_end
        self._trace.messages = request.messages
        return request

    @property
    def must_stop(self) -> bool:
        """Whether to call `stop`: the lease is lost, a cancel was asked for, or time is over."""
        lease, now = self.lease, self._paused_at or time.monotonic()
        return lease.lost or lease.cancel_requested or now > self._give_up_at

    @property
    def is_urgent(self) -> bool:
        """Whether others are paused for it."""
        return claim.is_urgent(self.lease.task)

    def pause(self) -> None:
        """Stop the clock of its time limit: paused is not running."""
        self._paused_at = time.monotonic()
        log(self.lease.task, logging.INFO, "Paused for a more urgent task")

    def resume(self) -> None:
        if self._paused_at is not None:
            seconds = time.monotonic() - self._paused_at
            self._give_up_at += seconds
            self._paused_at = None
            log(self.lease.task, logging.INFO, "Goes on after a pause of %.2f s", seconds)

    def read(self, text: str, num_tokens: int = 0) -> None:
        """Add what a local model has generated, of so many tokens, possibly nothing."""
        if self.parser is None:
            self.take(text)
            return
        was_thinking = self.parser.is_thinking
        deltas = self.parser.feed(text)
        # Its tags count, too.
        if was_thinking or self.parser.is_thinking:
            self.progress.reasoning_tokens += num_tokens
        for delta in deltas:
            self.take(delta)

    def take(self, delta: AnswerDelta) -> None:
        """Add what has come of the answer, possibly nothing."""
        if not delta:
            return
        now = time.monotonic()
        if self._first_token is None:
            self._first_token = now
        else:
            observe(self._itl, self.lease.task.model_name, ITL, now - self._latest_text)
        self._latest_text = now
        logprobs = self.progress.logprobs
        if logprobs:
            logprobs = logprobs[self._num_logprobs_told :]
            self._num_logprobs_told += len(logprobs)
        if isinstance(delta, str):
            self._text.append(delta)
            self.deltas.write(delta, logprobs)
        elif isinstance(delta, Reasoning):
            self._reasoning.append(delta.text)
            self.deltas.write_reasoning(delta.text, logprobs)
        else:
            self._take_tool_call(delta, logprobs)

    def _take_tool_call(self, delta: ToolCallDelta, logprobs: list[dict[str, Any]]) -> None:
        part: dict[str, Any] = {"index": delta.index, "function": {"arguments": delta.arguments}}
        if delta.id is not None:
            part = {"index": delta.index, "id": delta.id, "type": "function"}
            part["function"] = {"name": delta.name, "arguments": delta.arguments}
            self._tool_calls.append((delta.id, delta.name or "", []))
        self._tool_calls[delta.index][2].append(delta.arguments)
        self.deltas.write_tool_call(part, logprobs)

    def start_over(self, failure: InferenceError) -> None:
        """Go on as the next attempt: the text that readers have is void then."""
        lease_renewer.release(self.lease)
        self.lease.cost, self.progress.cost = self.progress.cost, NO_COST
        self.lease.endpoint = self.progress.endpoint
        lease = claim.begin_again(self.lease, failure)
        if lease is None:
            self.lease.lost = True
            return
        self._end_trace(Outcome.FAILED, self._result(FinishReason.ERROR), failure)
        self._trace = AttemptTrace(lease.task, self._trace.messages)
        self.lease = lease
        self.deltas = DeltaWriter(lease.task.pk, lease.attempt)
        self._text, self._reasoning, self._tool_calls = [], [], []
        self._num_logprobs_told = 0
        self._first_token = None
        self._num_tokens_published = 0
        lease_renewer.hold(lease)

    def publish_progress_if_due(self) -> None:
        """Publish new progress to the feed, at most ten times a second."""
        num_tokens = self.progress.completion_tokens
        now = time.monotonic()
        if num_tokens == self._num_tokens_published or now - self._published_at < _PROGRESS_SECONDS:
            return
        self._num_tokens_published, self._published_at = num_tokens, now
        # No delta is empty, so that many are enough for the preview.
        preview = "".join(self._text[-events.MAX_PARTIAL_TEXT :])
        events.progressed(self.lease.task, num_tokens, preview)

    def complete(self) -> None:
        """Store the answer; one that is not of the form asked for is a failure."""
        self._read_rest()
        reason = self.progress.finish_reason or FinishReason.STOP
        if self._tool_calls and reason == FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        request, parsed = self.lease.task.request, None
        try:
            if reason == FinishReason.TOOL_CALLS:
                if asked := request.get("tools"):
                    tools.check_strict(asked, self._called())
            elif response_format := request.get("response_format"):
                parsed = structured_output.parse("".join(self._text), reason, response_format)
        except Exception as error:  # noqa: BLE001 (stored as the task's failure)
            self.fail(error, reason)
            return
        result = self._result(reason, parsed)
        self._end(partial(finish.complete, self.lease, result), Outcome.COMPLETED, result)

    def fail(self, error: BaseException, reason: FinishReason = FinishReason.ERROR) -> None:
        """Store why there is no answer; the text of an unexpected error goes to the log alone.

        A database that is away is no failure of the task: the sweep has it run again.
        """
        if isinstance(error, _DATABASE_IS_AWAY):
            logger.warning("Task %s: the database does not answer: %s", self.task_id, error)
            self.abandon()
            return
        self._read_rest()
        if not isinstance(error, InferenceError):
            logger.error("Task %s: unexpected error", self.task_id, exc_info=error)
            message = "The worker failed unexpectedly; its log has the reason, under the task's id."
            error = InferenceError(message, ErrorCode.INTERNAL_ERROR)
        has_answer = self._text or self._reasoning or self._tool_calls
        result = self._result(reason) if has_answer else None
        self._end(partial(finish.fail, self.lease, error, result), Outcome.FAILED, result, error)

    def put_back(self, later: RetryLater) -> None:
        """Give its place back until the provider may be asked again, which is another attempt."""
        result = self._result(FinishReason.ERROR)
        store = partial(finish.put_back, self.lease, later, result)
        self._end(store, Outcome.FAILED, result, later.failure)

    def stop(self) -> None:
        """End for the reason of `must_stop`; store nothing if the lease was lost."""
        if self.lease.lost:
            logger.warning("Task %s: attempt %d lost its lease", self.task_id, self.lease.attempt)
            self.abandon()
        elif self.lease.cancel_requested:
            self._read_rest()
            result = self._result(FinishReason.CANCELLED)
            store = partial(finish.finish_cancelled, self.lease, result)
            self._end(store, Outcome.CANCELLED, result)
        else:
            seconds = self.lease.task.request["timeout_seconds"]
            message = f"Not finished within timeout_seconds ({seconds:g}); the result has the text."
            self.fail(InferenceError(message, ErrorCode.TIMEOUT), FinishReason.TIMEOUT)

    def abandon(self) -> None:
        """End without storing it: the lease runs out, and the sweep makes the task due."""
        try:
            self.deltas.flush()
        except Exception:
            logger.exception("Task %s: its last deltas were not sent", self.task_id)
        lease_renewer.release(self.lease)
        counters.count(self._itl)

    def _end(
        self,
        store: Callable[[Timings], bool],
        outcome: Outcome,
        result: TaskResult | None,
        failure: InferenceError | None = None,
    ) -> None:
        """Free what the attempt holds, then store its end: readers see all deltas before it.

        Milliseconds: the first token since the claim; inference without the model's loading.
        """
        self.abandon()
        self.lease.cost = self.progress.cost
        self.lease.endpoint = self.progress.endpoint
        self.lease.provenance = self.progress.provenance
        elapsed_ms = (time.monotonic() - self._started) * 1000
        load_ms, first = self.progress.model_load_ms, self._first_token
        timings = Timings(
            model_load_ms=load_ms,
            ttft_ms=None if first is None else (first - self._started) * 1000,
            inference_ms=elapsed_ms - (load_ms or 0),
        )
        try:
            is_stored = store(timings)
        except _DATABASE_IS_AWAY as exc:
            # Others may share this worker: they go on, and the sweep has the task run again.
            logger.warning("Task %s: its end was not stored: %s", self.task_id, exc)
            return
        except Exception:
            # Another attempt would end in the same way.
            logger.exception("Task %s: its end cannot be stored", self.task_id)
            if failure is _UNSTORABLE:
                return
            fail = partial(finish.fail, self.lease, _UNSTORABLE, None)
            self._end(fail, Outcome.FAILED, None, _UNSTORABLE)
            return
        if is_stored:
            was_cancelled = self.lease.task.status == GenerationTask.Status.CANCELLED
            self._end_trace(Outcome.CANCELLED if was_cancelled else outcome, result, failure)

    def _end_trace(
        self, outcome: Outcome, result: TaskResult | None, failure: InferenceError | None = None
    ) -> None:
        self._trace.ended(
            outcome,
            result,
            first_token=self._first_token,
            model_load_ms=self.progress.model_load_ms,
            failure=failure,
        )

    def _read_rest(self) -> None:
        """Take what the parser has held back, since nothing more will come."""
        parser, self.parser = self.parser, None
        for delta in parser.finish() if parser is not None else ():
            self.take(delta)

    def _called(self) -> list[ToolCall]:
        return [
            ToolCall(
                id=call_id,
                type="function",
                function=ToolFunction(name=name, arguments="".join(arguments)),
            )
            for call_id, name, arguments in self._tool_calls
        ]

    def _result(self, finish_reason: FinishReason, parsed: object = None) -> TaskResult:
        result = TaskResult(
            text="".join(self._text),
            finish_reason=finish_reason,
            usage=self.progress.usage(),
            model=self.lease.task.model_name,
            parsed=parsed,
            extra=self.progress.extra,
        )
        if self._reasoning:
            result["reasoning_content"] = "".join(self._reasoning)
        if self._tool_calls:
            result["tool_calls"] = self._called()
        if self.progress.logprobs:
            result["logprobs"] = {"content": self.progress.logprobs}
        return result
