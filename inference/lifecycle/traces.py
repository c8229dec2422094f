"""What traces are told of attempts: each is one generation, under the trace of its task."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.utils import timezone

from conversations.models import ChatMessage
from inference.errors import ErrorCode, InferenceError
from inference.models import GenerationTask, TaskAttempt, TaskResult, Usage
from monitoring import tracing
from monitoring.tracing import Generation, Level

Outcome = TaskAttempt.Outcome

# Whoever asks without a key is no user that traces could be told apart by.
_NO_USER = "local"
_NS_PER_SECOND = 10**9
_LEVELS = {Outcome.COMPLETED: Level.DEFAULT, Outcome.CANCELLED: Level.WARNING}
_MESSAGES = {Outcome.CANCELLED: "Cancelled."}


class AttemptTrace:
    """What the trace needs of an attempt once that has ended, and the task's row has moved on."""

    def __init__(self, task: GenerationTask, messages: Sequence[ChatMessage] = ()) -> None:
        """`messages`: what the model is asked, if that is known already."""
        self.messages = messages
        self._task = task
        self._model_name, self._queue, self._request = task.model_name, task.queue, task.request
        self._started_ns = time.time_ns()
        self._started = time.monotonic()

    def ended(
        self,
        outcome: Outcome,
        result: TaskResult | None,
        *,
        first_token: float | None,
        model_load_ms: float | None,
        failure: InferenceError | None = None,
    ) -> None:
        """The end is stored. `first_token` is on the monotonic clock, `result` what text there is.

        Costs the task some microseconds, and nothing where it is not traced.
        """
        task = self._task
        if task.trace_id is None:
            return
        now = time.monotonic()
        metadata = _attempt_metadata(task, self._model_name, self._queue, outcome) | {
            "model_load_ms": model_load_ms,
            "ttft_ms": None if first_token is None else (first_token - self._started) * 1000,
            "inference_ms": (now - self._started) * 1000 - (model_load_ms or 0),
            "error_code": failure.code.value if failure else None,
            **_request_metadata(self._request),
            **_result_metadata(result),
        }
        tracing.record(
            Generation(
                trace_id=task.trace_id,
                attempt=task.attempt,
                model=self._model_name,
                parameters=self._request["params"],
                messages=self.messages,
                output=result["text"] if result else None,
                usage=_usage(result["usage"]) if result else None,
                started_ns=self._started_ns,
                first_token_ns=None if first_token is None else self._ns_at(first_token),
                ended_ns=self._ns_at(now),
                level=_LEVELS.get(outcome, Level.ERROR),
                status_message=failure.message if failure else _MESSAGES.get(outcome),
                metadata=metadata,
                **_trace_fields(task, self._model_name, self._queue),
            )
        )

    def _ns_at(self, moment: float) -> int:
        """The time of day of a moment of the monotonic clock."""
        return self._started_ns + int((moment - self._started) * _NS_PER_SECOND)


def lost(task: GenerationTask) -> None:
    """The task was taken back from a worker that is no more, whose words are lost too."""
    if task.trace_id is None or task.started_at is None:
        return
    metadata = _attempt_metadata(task, task.model_name, task.queue, Outcome.LOST)
    tracing.record(
        Generation(
            trace_id=task.trace_id,
            attempt=task.attempt,
            model=task.model_name,
            parameters=task.request["params"],
            messages=task.messages(),
            output=None,
            usage=None,
            started_ns=_ns(task.started_at),
            first_token_ns=None,
            ended_ns=max(_ns(task.started_at), _ns(timezone.now())),
            level=Level.ERROR,
            status_message=f"The worker {task.worker} was lost while it ran this attempt.",
            metadata=metadata
            | {"error_code": ErrorCode.WORKER_LOST.value}
            | _request_metadata(task.request),
            **_trace_fields(task, task.model_name, task.queue),
        )
    )


def _trace_fields(task: GenerationTask, model_name: str, queue: str) -> dict[str, Any]:
    """Those that say to whom and to what the trace belongs."""
    is_fallback = model_name != task.requested_model
    return {
        "session_id": task.conversation_id,
        "user_id": None if task.owner == _NO_USER else task.owner,
        "tags": [queue, "fallback"] if is_fallback else [queue],
        "trace_metadata": task.metadata,
    }


def _attempt_metadata(
    task: GenerationTask, model_name: str, queue: str, outcome: Outcome
) -> dict[str, Any]:
    """Where and how the attempt ran; the model's name tells a fallback from the model asked for."""
    return {
        "task_id": task.pk,
        "attempt": task.attempt,
        "outcome": outcome.value,
        "worker": task.worker,
        "queue": queue,
        "priority": task.priority,
        "requested_model": task.requested_model,
        "is_fallback": model_name != task.requested_model,
        "queue_wait_ms": task.queue_wait_ms,
    }


def _request_metadata(request: dict[str, Any]) -> dict[str, Any]:
    """What was asked for beside the sampling parameters."""
    names = ("response_format", "extra_params", "context_overflow", "timeout_seconds")
    return {name: request[name] for name in names if request.get(name)}


def _result_metadata(result: TaskResult | None) -> dict[str, Any]:
    if result is None:
        return {}
    return {"finish_reason": str(result["finish_reason"])} | (
        {"extra": result["extra"]} if result["extra"] else {}
    )


def _usage(usage: Usage) -> dict[str, int]:
    """In Langfuse's words: it adds up what begins with "input", so each token is in one of them."""
    return {
        "input": usage["prompt_tokens"] - usage["cached_tokens"],
        "input_cached_tokens": usage["cached_tokens"],
        "output": usage["completion_tokens"],
        "total": usage["total_tokens"],
    }


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6) * 1000
