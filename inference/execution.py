"""Running one claimed task: from the row to the provider, and what came of it back to the row."""

import logging
import time
from contextlib import closing
from dataclasses import dataclass, field

from inference import lease_keeper, lifecycle
from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import Lease, Timings
from inference.models import GenerationTask, RegisteredModel, TaskResult
from inference.providers.base import GenerationRequest, Progress
from inference.providers.registry import provider_for
from monitoring.streams import ChunkWriter

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Run:
    """One attempt while it runs."""

    lease: Lease
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    text: list[str] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)

    def result(self, finish_reason: FinishReason) -> TaskResult:
        return TaskResult(
            text="".join(self.text),
            finish_reason=finish_reason,
            usage=self.progress.usage(),
            model=self.lease.task.model_name,
            parsed=None,
            extra=self.progress.extra,
        )

    def timings(self) -> Timings:
        """Milliseconds: first token since the claim; inference without the model's loading."""
        load_ms = self.progress.model_load_ms
        elapsed_ms = (time.monotonic() - self.started) * 1000
        first = self.first_token
        return Timings(
            model_load_ms=load_ms,
            ttft_ms=None if first is None else (first - self.started) * 1000,
            inference_ms=elapsed_ms - (load_ms or 0),
        )


def execute(lease: Lease) -> None:
    """Answer a claimed task and store its end. A lost lease ends it without a trace."""
    run = _Run(lease)
    try:
        with lease_keeper.hold(lease):
            finish_reason = _generate(run)
    except InferenceError as failure:
        _fail(run, failure, FinishReason.ERROR)
    except Exception:
        logger.exception("Task %s: unexpected error", lease.task.pk)
        message = "The worker failed unexpectedly; its log has the reason, under the task's id."
        _fail(run, InferenceError(message, ErrorCode.INTERNAL_ERROR), FinishReason.ERROR)
    else:
        _finish(run, finish_reason)


def _generate(run: _Run) -> FinishReason | None:
    """Run the provider to its end, or until there is a reason to stop; None: the lease was lost."""
    task = run.lease.task
    give_up_at = run.started + task.request["timeout_seconds"]
    writer = ChunkWriter(task.pk, run.lease.attempt)
    generation = provider_for(_model(task)).generate(_request(task), run.progress)
    with closing(generation), closing(writer):
        for text in generation:
            if text:
                run.first_token = run.first_token or time.monotonic()
                run.text.append(text)
            writer.write(text)
            if run.lease.lost:
                return None
            if run.lease.cancel_requested:
                return FinishReason.CANCELLED
            if time.monotonic() > give_up_at:
                return FinishReason.TIMEOUT
    return run.progress.finish_reason or FinishReason.STOP


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
        task_id=task.pk,
        messages=task.messages(),
        params=task.request["params"],
        context_overflow=task.request["context_overflow"],
    )


def _finish(run: _Run, finish_reason: FinishReason | None) -> None:
    if finish_reason is None:
        logger.warning("Task %s: attempt %d lost its lease", run.lease.task.pk, run.lease.attempt)
    elif finish_reason == FinishReason.TIMEOUT:
        seconds = run.lease.task.request["timeout_seconds"]
        message = f"Not finished within timeout_seconds ({seconds:g}); the result has the text."
        _fail(run, InferenceError(message, ErrorCode.TIMEOUT), finish_reason)
    elif finish_reason == FinishReason.CANCELLED:
        lifecycle.finish_cancelled(run.lease, run.result(finish_reason), run.timings())
    else:
        lifecycle.complete(run.lease, run.result(finish_reason), run.timings())


def _fail(run: _Run, failure: InferenceError, finish_reason: FinishReason) -> None:
    result = run.result(finish_reason) if run.text else None
    lifecycle.fail(run.lease, failure, result, run.timings())
