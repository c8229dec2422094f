"""Generations as spans of the Langfuse SDK: imported by the outbox thread, nowhere else."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from django.conf import settings
from langfuse import LangfuseOtelSpanAttributes, __version__
from langfuse._client.attributes import create_generation_attributes
from langfuse._client.span_processor import LangfuseSpanProcessor
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import Status, StatusCode

from monitoring.logs.redaction import redact
from monitoring.tracing.generation import Generation, Level

# As the SDK names its own: the server reads metadata as that writes it.
_SDK_TRACER = "langfuse-sdk"
_TIMEOUT_SECONDS = 5
_FLUSH_INTERVAL_SECONDS = 0.5
# Small, since a request with long texts is refused as a whole.
_MAX_BATCH = 20
_WARN_AGAIN_SECONDS = 60.0


class LangfuseSpans:
    """Spans for one Langfuse project, sent by the SDK's own thread; those it cannot send are lost.

    Nothing is shared with tracing that the worker's environment may set up. Images in messages are
    sent as they are: only the SDK's client, which is not used, uploads them.
    """

    def __init__(self, host: str, public_key: str, secret_key: str) -> None:
        self._ids = _GivenIds()
        with _without_otel_settings():
            self._provider = TracerProvider(
                resource=Resource({"service.name": settings.APP_NAME}),
                shutdown_on_exit=False,
                id_generator=self._ids,
                span_limits=SpanLimits(max_span_attributes=SpanLimits.UNSET),
            )
            processor = LangfuseSpanProcessor(
                public_key=public_key,
                secret_key=secret_key,
                base_url=host,
                timeout=_TIMEOUT_SECONDS,
                flush_at=_MAX_BATCH,
                flush_interval=_FLUSH_INTERVAL_SECONDS,
                otel_compression="gzip",
            )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(
            _SDK_TRACER, __version__, attributes={"public_key": public_key}
        )

    def add(self, generation: Generation) -> None:
        """Queue a span without a parent, since its attempt is all that is known of a task by now.

        The same attempt always has the same ids: it is stored once, however often it is sent.
        """
        seed = f"{generation.trace_id}#{generation.attempt}"
        self._ids.trace_id = int(generation.trace_id, 16)
        self._ids.span_id = int.from_bytes(sha256(seed.encode()).digest()[:8])
        message = generation.status_message and redact(generation.status_message)
        first_token_ns = generation.first_token_ns
        span = self._tracer.start_span(
            "generation",
            context=Context(),
            start_time=generation.started_ns,
            attributes=_trace_attributes(generation)
            | create_generation_attributes(
                model=generation.model,
                model_parameters=_masked(dict(generation.parameters)),
                input=_masked(list(generation.messages)),
                output=_masked(generation.output),
                usage_details=dict(generation.usage) if generation.usage else None,
                completion_start_time=None
                if first_token_ns is None
                else datetime.fromtimestamp(first_token_ns / 1e9, UTC),
                metadata=_masked(dict(generation.metadata)),
                level=generation.level.value,
                status_message=message,
            ),
        )
        if generation.level == Level.ERROR:
            span.set_status(Status(StatusCode.ERROR, description=message))
        span.end(end_time=generation.ended_ns)

    def flush(self) -> None:
        """Try to send all that is queued; takes as long as Langfuse does."""
        self._provider.force_flush()


class _GivenIds(IdGenerator):
    """The ids of the next span, rather than random ones."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class _WarningNowAndThen(logging.Filter):
    """The exporter's log lines: one a minute, without secrets."""

    _passed_at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if time.monotonic() - self._passed_at < _WARN_AGAIN_SECONDS:
            return False
        self._passed_at = time.monotonic()
        record.msg, record.args = f"Traces may be lost: {redact(record.getMessage())}", ()
        record.exc_info = None
        return True


logging.getLogger(trace_exporter.__name__).addFilter(_WarningNowAndThen())


@contextlib.contextmanager
def _without_otel_settings() -> Iterator[None]:
    """Hide OTEL_* variables: their headers, limits and samplers are meant for another endpoint."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("OTEL_")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _trace_attributes(generation: Generation) -> dict[str, Any]:
    """What belongs to the trace, on each of its spans; None is left out."""
    names = LangfuseOtelSpanAttributes
    attributes = {
        names.TRACE_NAME: "task",
        names.TRACE_SESSION_ID: generation.session_id,
        names.TRACE_USER_ID: generation.user_id,
        names.TRACE_TAGS: list(generation.tags),
        names.ENVIRONMENT: settings.APP_ENV,
        names.RELEASE: settings.VERSION,
    } | {
        f"{names.TRACE_METADATA}.{name}": json.dumps(_masked(value), ensure_ascii=False)
        for name, value in generation.trace_metadata.items()
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _masked(data: Any) -> Any:
    """The data with *** for whatever looks like a key in its texts."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, dict):
        return {name: _masked(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_masked(value) for value in data]
    return data
