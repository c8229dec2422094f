"""A local stand-in for Langfuse: takes traces as its OTLP endpoint does, and may fail to."""

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

TRACES = "/api/public/otel/v1/traces"
HEALTH = "/api/public/health"

Span = dict[str, Any]


class OtlpServer(ThreadingHTTPServer):
    """Answers with `status`, or only once `may_answer` is set; keeps what it took.

    A span is a dict of its ids, times and status, with `attributes` and those of its `resource`.
    """

    daemon_threads = True

    def __init__(self, public_key: str, secret_key: str, port: int = 0) -> None:
        self.credentials = base64.b64encode(f"{public_key}:{secret_key}".encode()).decode()
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.num_posts = 0
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def of_trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace, each once, in the order of their attempts."""
        found = {span["span_id"]: span for span in list(self.spans) if span["trace_id"] == trace_id}
        return sorted(found.values(), key=lambda span: int(metadata(span)["attempt"]))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._stand_in.may_answer.wait(60)
        self._answer(self._stand_in.status if self.path == HEALTH else 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        stand_in = self._stand_in
        stand_in.num_posts += 1
        stand_in.may_answer.wait(60)
        if self.headers["Authorization"] != f"Basic {stand_in.credentials}":
            self._answer(401)
        elif self.path != TRACES:
            self._answer(404)
        else:
            if stand_in.status == 200:
                plain = gzip.decompress(body)
                stand_in.bodies.append(plain)
                stand_in.headers.append(dict(self.headers))
                stand_in.spans += _spans(plain)
            self._answer(stand_in.status)

    @property
    def _stand_in(self) -> OtlpServer:
        return cast(OtlpServer, self.server)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Tests have their own words."""


@contextmanager
def running(public_key: str, secret_key: str, port: int = 0) -> Iterator[OtlpServer]:
    """A server that takes these keys, until the end of the block."""
    with OtlpServer(public_key, secret_key, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.may_answer.set()
            server.shutdown()


def metadata(span: Span, of: str = "observation") -> dict[str, Any]:
    """The metadata of a span, or of its trace, as the server reads it: JSON under each key."""
    prefix = f"langfuse.{of}.metadata."
    return {
        name.removeprefix(prefix): json.loads(value)
        for name, value in span["attributes"].items()
        if name.startswith(prefix)
    }


def _spans(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        {
            "trace_id": span.trace_id.hex(),
            "span_id": span.span_id.hex(),
            "parent_id": span.parent_span_id.hex(),
            "name": span.name,
            "scope": scoped.scope.name,
            "start_ns": span.start_time_unix_nano,
            "end_ns": span.end_time_unix_nano,
            "status": (span.status.code, span.status.message),
            "attributes": {each.key: _value(each.value) for each in span.attributes},
            "resource": {each.key: _value(each.value) for each in sent.resource.attributes},
        }
        for sent in request.resource_spans
        for scoped in sent.scope_spans
        for span in scoped.spans
    ]


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, str(kind))
