"""Generations by way of the Langfuse SDK: imported by the thread that sends them, nowhere else."""

import gzip
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import httpx
from django.conf import settings
from langfuse import Langfuse, LangfuseGeneration, LangfuseOtelSpanAttributes, __version__
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from monitoring.logs.redaction import redact
from monitoring.redis.per_process import PerProcess
from monitoring.tracing.generation import Generation
from monitoring.tracing.sender import MAX_BATCH, RefusedError, UnreachableError

_TRACES_PATH = "/api/public/otel/v1/traces"
# As the SDK names its own: the server reads metadata as that writes it.
_SDK_TRACER = "langfuse-sdk"
_TIMEOUT = httpx.Timeout(5.0, connect=2.0)
# The SDK has threads that look for work now and then; there is none for them.
_NEVER_SECONDS = 3600.0
# Sent again, the same batch would get the same answer.
_REFUSALS = {400, 413, 422}
_WRONG_KEYS = {401, 403}


class LangfuseSender:
    """A client of one Langfuse project; `send` sends what `prepare` made, in the same thread.

    It shares nothing with tracing that the worker's environment may set up: neither the global
    tracer provider, nor the exporter, nor its limits.
    """

    def __init__(self, host: str, public_key: str, secret_key: str) -> None:
        # A picture in a prompt stays where it is: the SDK would upload it to wherever it is told.
        os.environ["LANGFUSE_MEDIA_UPLOAD_ENABLED"] = "false"
        self._ids = _GivenIds()
        self._exporter = _Exporter(host, public_key, secret_key)
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource({"service.name": settings.APP_NAME}),
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=SpanLimits(max_span_attributes=SpanLimits.UNSET),
        )
        self._client = Langfuse(
            public_key=public_key,
            secret_key=secret_key,
            base_url=host,
            environment=settings.APP_ENV,
            release=settings.VERSION,
            tracer_provider=self._provider,
            span_exporter=self._exporter,
            mask=_mask,
            flush_at=MAX_BATCH + 1,
            flush_interval=_NEVER_SECONDS,
        )
        self._tracer = self._provider.get_tracer(
            _SDK_TRACER, __version__, attributes={"public_key": public_key}
        )

    def prepare(self, generations: list[Generation]) -> None:
        for generation in generations:
            self._add(generation)

    def send(self) -> None:
        self._exporter.problem = None
        self._provider.force_flush()
        if self._exporter.problem is not None:
            raise self._exporter.problem

    def _add(self, generation: Generation) -> None:
        """A span without a parent, since its attempt is all that is known of a task by now."""
        self._ids.trace_id = int(generation.trace_id, 16)
        self._ids.span_id = _span_id(generation)
        span = self._tracer.start_span(
            "generation",
            context=Context(),
            start_time=generation.started_ns,
            attributes=_trace_attributes(generation),
        )
        observation = LangfuseGeneration(
            otel_span=span,
            langfuse_client=self._client,
            model=generation.model,
            model_parameters=_mask(data=dict(generation.parameters)),
            input=list(generation.messages),
            output=generation.output,
            usage_details=dict(generation.usage) if generation.usage else None,
            completion_start_time=_time(generation.first_token_ns),
            metadata=dict(generation.metadata),
            level=generation.level.value,
            status_message=generation.status_message and redact(generation.status_message),
        )
        observation.end(end_time=generation.ended_ns)


class _GivenIds(IdGenerator):
    """The ids of the next span, rather than random ones."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class _Exporter(SpanExporter):
    """Posts spans once, and remembers why that failed: whoever sends them decides what follows.

    The exporter of OpenTelemetry would log each failure, hold up the thread with retries of its
    own, and add headers that are meant for another endpoint: OTEL_EXPORTER_OTLP_HEADERS.
    """

    problem: Exception | None = None

    def __init__(self, host: str, public_key: str, secret_key: str) -> None:
        self._url = host + _TRACES_PATH
        self._auth = httpx.BasicAuth(public_key, secret_key)
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
            "x-langfuse-sdk-name": "python",
            "x-langfuse-sdk-version": __version__,
            "x-langfuse-public-key": public_key,
            # Without it a trace is shown minutes later.
            "x-langfuse-ingestion-version": "4",
        }

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        body = gzip.compress(encode_spans(spans).SerializeToString(), compresslevel=5)
        try:
            status = self._post(body)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            reason = redact(str(exc)).rstrip(".") or type(exc).__name__
            self.problem = UnreachableError(f"Langfuse does not answer ({reason}).")
        else:
            self.problem = _problem_with(status)
        return SpanExportResult.FAILURE if self.problem else SpanExportResult.SUCCESS

    def _post(self, body: bytes) -> int:
        """The status of the answer, whose body says no more."""
        http = _http_client()
        with http.stream(
            "POST", self._url, content=body, headers=self._headers, auth=self._auth
        ) as response:
            return response.status_code


@PerProcess
def _http_client() -> httpx.Client:
    return httpx.Client(timeout=_TIMEOUT, limits=httpx.Limits(keepalive_expiry=2.0))


def _problem_with(status: int) -> Exception | None:
    if status < 300:
        return None
    if status in _REFUSALS:
        return RefusedError(f"Langfuse refuses them with status {status}.")
    if status in _WRONG_KEYS:
        return UnreachableError(
            "Langfuse refuses the keys: check LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY, and that "
            "they are of LANGFUSE_HOST."
        )
    return UnreachableError(f"Langfuse answers with status {status}: check LANGFUSE_HOST.")


def _span_id(generation: Generation) -> int:
    """Always the same for the same attempt: it is stored once, however often it is sent."""
    seed = f"{generation.trace_id}#{generation.attempt}"
    return int.from_bytes(sha256(seed.encode()).digest()[:8])


def _trace_attributes(generation: Generation) -> dict[str, Any]:
    """What belongs to the trace, on each of its spans; None is left out."""
    names = LangfuseOtelSpanAttributes
    attributes = {
        names.TRACE_NAME: "task",
        names.TRACE_SESSION_ID: generation.session_id,
        names.TRACE_USER_ID: generation.user_id,
        names.TRACE_TAGS: list(generation.tags),
    } | {
        f"{names.TRACE_METADATA}.{name}": json.dumps(_mask(data=value), ensure_ascii=False)
        for name, value in generation.trace_metadata.items()
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _mask(*, data: Any, **_: Any) -> Any:
    """The data with *** for whatever looks like a key in its texts; the signature is the SDK's."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, dict):
        return {name: _mask(data=value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_mask(data=value) for value in data]
    return data


def _time(nanoseconds: int | None) -> datetime | None:
    return None if nanoseconds is None else datetime.fromtimestamp(nanoseconds / 1e9, UTC)
