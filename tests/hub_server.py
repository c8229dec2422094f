"""A server that speaks the hub's HTTP, for HF_ENDPOINT: addresses, headers, redirects, refusals."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<filename>.+)")
_CHUNK_BYTES = 64 * 1024


@dataclass(slots=True)
class Faults:
    """What goes wrong; each `next_` once for each item, then no more.

    `next_break_after`: bytes of an answer's body after which the connection ends.
    `next_statuses`: of answers without the file. `bytes_per_second` 0: as fast as it goes.
    """

    next_break_after: list[int] = field(default_factory=list)
    next_statuses: list[int] = field(default_factory=list)
    next_wrong_bytes: list[bytes] = field(default_factory=list)
    token: str = ""
    refuses_ranges: bool = False
    bytes_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Fetch:
    """A request for a file's bytes; `range` is None without that header."""

    path: str
    range: str | None
    authorization: str | None
    status: int


class HubServer:
    """Listens on loopback; `files` by repository and name: `org/repo/file.gguf`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults = Faults()
        self.fetches: list[Fetch] = []
        self.num_sent_bytes = 0
        self.stopped = threading.Event()
        self._server = _server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def cdn_url(self) -> str:
        """The same server under another name, to which the token must not go."""
        return f"http://localhost:{self._server.server_address[1]}"

    @property
    def ranges(self) -> list[str | None]:
        """What was asked for of files, in order."""
        return [fetch.range for fetch in self.fetches]

    def stop(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(20)


@contextlib.contextmanager
def serving_hub() -> Iterator[HubServer]:
    """A hub, which is gone when the block ends."""
    hub = HubServer()
    try:
        yield hub
    finally:
        hub.stop()


def _server(hub: HubServer) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(has_body=False)

        def do_GET(self) -> None:
            self._answer(has_body=True)

        def _answer(self, *, has_body: bool) -> None:
            path = urlsplit(self.path).path
            if hub.faults.next_statuses:
                self._refuse(hub.faults.next_statuses.pop(0))
            elif path.startswith("/cdn/"):
                self._send_file(path.removeprefix("/cdn/"), has_body=has_body)
            elif found := _RESOLVE.fullmatch(path):
                self._redirect(found["repo"], found["revision"], found["filename"])
            else:
                self._refuse(404)

        def _redirect(self, repo: str, revision: str, filename: str) -> None:
            """To where the bytes are, with what there is to know of the file."""
            token = hub.faults.token
            if token and self.headers["authorization"] != f"Bearer {token}":
                self._refuse(401, "GatedRepo")
            elif not any(name.startswith(f"{repo}/") for name in hub.files):
                self._refuse(401, "RepoNotFound")
            elif revision not in ("main", COMMIT):
                self._refuse(404, "RevisionNotFound")
            elif (content := hub.files.get(f"{repo}/{filename}")) is None:
                self._refuse(404, "EntryNotFound")
            else:
                self.send_response(302)
                self.send_header(
                    "Location", f"{hub.cdn_url}/cdn/{repo}/{filename}?Signature=secret"
                )
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("X-Linked-Etag", f'"{sha256(content).hexdigest()}"')
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send_file(self, name: str, *, has_body: bool) -> None:
            content = hub.files[name]
            if hub.faults.next_wrong_bytes:
                content = hub.faults.next_wrong_bytes.pop(0)
            asked = None if hub.faults.refuses_ranges else self.headers["range"]
            start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            self.send_response(206 if asked else 200)
            hub.fetches.append(
                Fetch(
                    name,
                    self.headers["range"],
                    self.headers["authorization"],
                    206 if asked else 200,
                )
            )
            if asked:
                size = len(content)
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("ETag", '"of-the-cdn"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if has_body:
                self._send(content[start:])

        def _send(self, body: bytes) -> None:
            end = len(body)
            if hub.faults.next_break_after:
                end = min(end, hub.faults.next_break_after.pop(0))
                self.close_connection = True
            for start in range(0, end, _CHUNK_BYTES):
                chunk = body[start : min(start + _CHUNK_BYTES, end)]
                if hub.faults.bytes_per_second:
                    time.sleep(len(chunk) / hub.faults.bytes_per_second)
                if hub.stopped.is_set():
                    return
                self.wfile.write(chunk)
                hub.num_sent_bytes += len(chunk)

        def _refuse(self, status: int, code: str = "") -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that hang up are part of the tests."""

    return Server(("127.0.0.1", 0), Handler)
