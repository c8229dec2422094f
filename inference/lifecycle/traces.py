"""Traces of attempts: each is one span in the trace of its task."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.utils import timezone

from conversations.models import ChatMessage
from inference.errors import ErrorCode, InferenceError
from inference.models import GenerationTask, TaskAttempt, TaskResult
from monitoring import tracing
from monitoring.tracing import Generation, Level

Outcome = TaskAttempt.Outcome

_LOCAL_OWNER = "local"
_NS_PER_SECOND = 10**9
_LEVELS = {Outcome.COMPLETED: Level.DEFAULT, Outcome.CANCELLED: Level.WARNING}
_MESSAGES = {Outcome.CANCELLED: "Cancelled."}
# What is asked for beside the sampling parameters.
_REQUEST_METADATA = (
    *("response_format", "tools", "extra_params", "context_overflow", "timeout_seconds"),
)


class AttemptTrace:
    """An attempt as its span shows it; the task's row may have changed when the attempt ends."""

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
        elapsed = time.monotonic() - self._started
        ttft = None if first_token is None else first_token - self._started
        self._record(
            outcome,
            result,
            started_ns=self._started_ns,
            first_token_ns=None if ttft is None else self._started_ns + int(ttft * _NS_PER_SECOND),
            ended_ns=self._started_ns + int(elapsed * _NS_PER_SECOND),
            status_message=failure.message if failure else _MESSAGES.get(outcome),
            metadata={
                "model_load_ms": model_load_ms,
                "ttft_ms": None if ttft is None else ttft * 1000,
                "inference_ms": elapsed * 1000 - (model_load_ms or 0),
                "error_code": failure.code.value if failure else None,
            },
        )

    def lost(self) -> None:
        """The task was taken back from a worker that is gone, and its text with it."""
        task = self._task
        if task.trace_id is None or task.started_at is None:
            return
        self.messages = task.messages()
        self._record(
            Outcome.LOST,
            None,
            started_ns=_ns(task.started_at),
            first_token_ns=None,
            ended_ns=max(_ns(task.started_at), _ns(timezone.now())),
            status_message=f"The worker {task.worker} was lost while it ran this attempt.",
            metadata={"error_code": ErrorCode.WORKER_LOST.value},
        )

    def _record(
        self, outcome: Outcome, result: TaskResult | None, metadata: dict[str, Any], **fields: Any
    ) -> None:
        task = self._task
        if task.trace_id is None:
            return
        # The model's name tells a fallback from the model asked for.
        is_fallback = self._model_name != task.requested_model
        metadata |= {
            "task_id": task.pk,
            "attempt": task.attempt,
            "outcome": outcome.value,
            "worker": task.worker,
            "queue": self._queue,
            "priority": task.priority,
            "requested_model": task.requested_model,
            "is_fallback": is_fallback,
            "queue_wait_ms": task.queue_wait_ms,
        }
        metadata |= {
            name: self._request[name] for name in _REQUEST_METADATA if self._request.get(name)
        }
        usage = None
        if result is not None:
            metadata["finish_reason"] = str(result["finish_reason"])
            for name in ("reasoning_content", "tool_calls"):
                if told := result.get(name):
                    metadata[name] = told
            if result["extra"]:
                metadata["extra"] = result["extra"]
            counts = result["usage"]
            # Langfuse adds up what begins with "input", so each token is in one of them.
            usage = {
                "input": counts["prompt_tokens"] - counts["cached_tokens"],
                "input_cached_tokens": counts["cached_tokens"],
                "output": counts["completion_tokens"],
                "total": counts["total_tokens"],
            }
        tracing.record(
            Generation(
                trace_id=task.trace_id,
                attempt=task.attempt,
                model=self._model_name,
                parameters=self._request["params"],
                messages=self.messages,
                output=result["text"] if result else None,
                usage=usage,
                level=_LEVELS.get(outcome, Level.ERROR),
                metadata=metadata,
                session_id=task.conversation_id,
                # No user id for keyless callers: they cannot be told apart.
                user_id=None if task.owner == _LOCAL_OWNER else task.owner,
                tags=[self._queue, "fallback"] if is_fallback else [self._queue],
                trace_metadata=task.metadata,
                **fields,
            )
        )


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6) * 1000
