"""Two owners at random over all routes, streams and sockets: nothing of one reaches the other.

    python -m benchmarks.two_owners [--seconds 60] [--threads 20]

Each owner writes a marker into all that it sends, and asks with priorities of its own. Whatever is
received is searched for the other's marker; the ids in it are compared with the other's at the end,
numbers and vectors with those of the owner itself. Ends with status 1 if anything got through, or
has another status than it should.
"""

import argparse
import json
import random
import re
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from benchmarks.running_service import MINILM, ROOT, SMOLLM2, RunningService

_END = re.compile("event: (?:completed|failed|cancelled)")
_ID = re.compile(r"(?:(?:task|conv|msg|resp|batch)_|file-)[0-9a-f]{32}")
_STATS_CACHED_SECONDS = 11.0
# A task may have ended, or be deleted, by another thread of its owner.
_OF_ONE_TASK = (200, 204, 404, 409)
_MIN_SIMILARITY = 0.999
_NUM_LINES = 5  # of a batch
# By the beginning of an id, where its row is, and what may be asked of it.
_ROUTES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "task": (
        "/api/v1/tasks",
        [("GET", ""), ("DELETE", ""), ("GET", "/report"), ("GET", "/stream"), ("POST", "/cancel")],
    ),
    "conv": ("/api/v1/conversations", [("GET", ""), ("DELETE", ""), ("PATCH", "")]),
    "resp": (
        "/v1/responses",
        [("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")],
    ),
    "file": ("/v1/files", [("GET", ""), ("GET", "/content"), ("DELETE", "")]),
    "batc": ("/v1/batches", [("GET", ""), ("POST", "/cancel")]),
}


class Owner:
    """A client with a key, and what it has made, seen, and found wrong."""

    def __init__(self, service: RunningService, name: str, min_priority: int) -> None:
        self.name = name
        self.key = create_key(service, name, "tasks")
        self.marker = f"marker-of-{name}-{secrets.token_hex(4)}"
        self.min_priority = min_priority
        self.made: set[str] = set()
        self.seen: set[str] = set()
        self.statuses: Counter[int] = Counter()
        self.num_socket_messages = 0
        self.num_lines = 0
        self.wrong: list[str] = []
        self.other: Owner = self
        self.vector: list[float] = []
        self._service = service
        self.v1 = f"{service.base_url}/v1"

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self._service.base_url}/api/v1",
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=70,
            trust_env=False,
        )

    def check(self, what: str, text: str) -> None:
        """Look for what is the other's in whatever was received."""
        self.seen.update(_ID.findall(text))
        if self.other.marker in text or f'"{self.other.name}"' in text:
            self.wrong.append(f"{what}: {text[:500]}")

    def call(
        self, http: httpx.Client, method: str, path: str, body: Any = None, *statuses: int
    ) -> Any:
        """The answer as JSON, None for one without; it and its status are checked."""
        response = http.request(method, path, json=body)
        self.check(f"{method} {path}", response.text)
        self._check_status(f"{method} {path}", response, statuses or (200, 201))
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.json() if is_json else None

    def _check_status(self, what: str, response: httpx.Response, statuses: tuple[int, ...]) -> None:
        self.statuses[response.status_code] += 1
        if response.status_code not in statuses:
            response.read()
            self.wrong.append(f"{what}: {response.status_code} {response.text[:300]}")

    def task(self, rng: random.Random) -> dict[str, Any]:
        return {
            "model": rng.choice(("echo", "echo", SMOLLM2)),
            "prompt": f"{self.marker} says",
            "metadata": {"of": self.marker},
            "max_tokens": 8,
            "priority": self.min_priority + rng.randrange(10),
        }

    def run(self, seed: int, until: float) -> None:
        rng = random.Random(seed)  # noqa: S311 (no secret)
        try:
            with self.client() as http:
                while time.monotonic() < until:
                    self._one(http, rng)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is a finding
            self.wrong.append(f"{self.name}: {exc!r}")

    def _one(self, http: httpx.Client, rng: random.Random) -> None:  # noqa: PLR0912
        own, convs = self._own("task_")[:500], self._own("conv_")
        task_id = rng.choice(own) if own else None
        match rng.randrange(20):
            case 0 | 1 | 2:
                body = self.task(rng)
                if convs and rng.random() < 0.3:
                    body["conversation_id"] = rng.choice(convs)
                self._made(self.call(http, "POST", "/tasks", body))
            case 3:
                for made in self.call(http, "POST", "/tasks/batch", [self.task(rng)] * 3) or ():
                    self._made(made)
            case 4:
                fields = {"system_prompt": self.marker, "metadata": {"of": self.marker}}
                self._made(self.call(http, "POST", "/conversations", fields))
            case 5 if convs:
                path = f"/conversations/{rng.choice(convs)}"
                self.call(http, "PATCH", path, {"metadata": {"now": self.marker}})
                said = {"role": "user", "content": self.marker}
                self.call(http, "POST", f"{path}/messages", said)
                self.call(http, "GET", f"{path}/messages")
            case 6 if task_id:
                path = rng.choice((f"/tasks/{task_id}?wait=2", f"/tasks/{task_id}/report"))
                self.call(http, "GET", path, None, *_OF_ONE_TASK)
            case 7 if task_id:
                self._stream(http, f"/tasks/{task_id}/stream")
            case 8 if task_id:
                self.call(http, "POST", f"/tasks/{task_id}/cancel", None, *_OF_ONE_TASK)
                if rng.random() < 0.3:
                    self.call(http, "DELETE", f"/tasks/{task_id}", None, *_OF_ONE_TASK)
            case 9:
                lists = ("tasks", "conversations", "models", "keys/me", "monitor/logs?limit=1000")
                more = ("monitor/events?after=0&limit=1000", "monitor/stats")
                self.call(http, "GET", f"/{rng.choice((*lists, *more))}")
                for path in ("files", "batches"):
                    self.call(http, "GET", f"{self.v1}/{path}?limit=1000")
                self.check_queue(self.call(http, "GET", "/monitor/queue"))
                for path in ("/monitor/gpu", f"{self._service.base_url}/metrics"):
                    self.call(http, "GET", path, None, 403)
            case 10:
                self._ask_for_the_others(http, rng)
            case 11:
                self._listen(rng)
            case 12:
                self._embed(http)
            case 13 if task_id:
                self._take_a_ticket(http, task_id)
            case 14 | 15:
                self._chat(http)
            case 16 | 17:
                self._respond(http, rng)
            case _:
                rng.choice((self._submit_batch, self._read_batch))(http, rng)

    def _own(self, beginning: str) -> list[str]:
        return [each for each in sorted(self.made) if each.startswith(beginning)]

    def _take_a_ticket(self, http: httpx.Client, task_id: str) -> None:
        """A ticket opens a stream once."""
        ticket = self.call(http, "POST", "/monitor/ticket")["ticket"]
        path = f"/tasks/{task_id}/stream?ticket={ticket}"
        with httpx.Client(base_url=http.base_url, timeout=70, trust_env=False) as browser:
            self._stream(browser, path)
            self.call(browser, "GET", path, None, 401)

    def _chat(self, http: httpx.Client) -> None:
        """The answer of an echo is what its own owner has said."""
        message = {"role": "user", "content": f"{self.marker} asks"}
        chat = {"model": "echo", "messages": [message], "priority": self.min_priority}
        answer = self.call(http, "POST", f"{self.v1}/chat/completions", chat)
        self.made.add(answer["id"].replace("chatcmpl-", "task_"))
        if self.marker not in answer["choices"][0]["message"]["content"]:
            self.wrong.append(f"chat: {answer}")

    def _respond(self, http: httpx.Client, rng: random.Random) -> None:
        """A response, or one after another, that may have been deleted with its task."""
        earlier = self._own("resp_")
        body = {"model": "echo", "input": self.marker, "priority": self.min_priority}
        if earlier:
            body["previous_response_id"] = rng.choice(earlier)
            path = f"{self.v1}/responses/{rng.choice(earlier)}"
            self.call(http, "GET", f"{path}/input_items", None, 200, 404)
            if rng.random() < 0.3:
                self.call(http, "DELETE", path, None, 200, 404)
        answer = self.call(http, "POST", f"{self.v1}/responses", body, 200, 404)
        if "id" in answer:
            self.made |= {answer["id"], answer["id"].replace("resp_", "task_")}

    def _submit_batch(self, http: httpx.Client, _: random.Random) -> None:
        message = {"role": "user", "content": f"{self.marker} asks"}
        chat = {"model": "echo", "messages": [message], "priority": self.min_priority}
        line = {"method": "POST", "url": "/v1/chat/completions", "body": chat}
        lines = [json.dumps({"custom_id": f"{self.marker}-{i}"} | line) for i in range(_NUM_LINES)]
        files = {"file": (f"{self.marker}.jsonl", "\n".join(lines).encode())}
        upload = http.post(f"{self.v1}/files", files=files, data={"purpose": "batch"})
        self.check("upload", upload.text)
        self._check_status("upload", upload, (200, 429))
        if upload.is_success:
            self.made.add(upload.json()["id"])
            self.num_lines += _NUM_LINES
            body = {"input_file_id": upload.json()["id"], "completion_window": "24h"}
            body |= {"endpoint": "/v1/chat/completions", "metadata": {"of": self.marker}}
            batch = self.call(http, "POST", f"{self.v1}/batches", body, 200, 429)
            if "id" in batch:
                self.made.add(batch["id"])

    def _read_batch(self, http: httpx.Client, rng: random.Random) -> None:
        """All lines of an ended batch have answers, and are the owner's."""
        batches = self._own("batch_")
        if not batches:
            return
        path = f"{self.v1}/batches/{rng.choice(batches)}"
        batch = self.call(http, "GET", path)
        if rng.random() < 0.1:
            self.call(http, "POST", f"{path}/cancel", None, 200, 409)
        if batch["status"] == "completed":
            self.made.add(batch["output_file_id"])
            content = http.get(f"{self.v1}/files/{batch['output_file_id']}/content")
            self.check("output of a batch", content.text)
            if content.text.count(f"{self.marker} asks") != _NUM_LINES:
                self.wrong.append(f"output of a batch: {content.status_code} {content.text[:500]}")

    def _stream(self, http: httpx.Client, path: str) -> None:
        """A stream is all of a task's own text, with its end, or of a task that is deleted."""
        with http.stream("GET", path) as stream:
            self._check_status("stream", stream, (200, 404))
            text = "".join(stream.iter_text())
        self.check("stream", text)
        if stream.status_code == 200 and not _END.search(text):
            self.wrong.append(f"stream without an end: {text[-300:]}")

    def _embed(self, http: httpx.Client) -> None:
        """The vector of the marker is the same at any time, and not of another text."""
        [vector] = self.call(http, "POST", "/embeddings", {"texts": [self.marker]})["embeddings"]
        self.vector = self.vector or vector
        if sum(a * b for a, b in zip(self.vector, vector, strict=True)) < _MIN_SIMILARITY:
            self.wrong.append("another vector for the same text")

    def _made(self, body: Any) -> None:
        for name in ("task_id", "conversation_id"):
            if isinstance(body, dict) and body.get(name):
                self.made.add(body[name])

    def _ask_for_the_others(self, http: httpx.Client, rng: random.Random) -> None:
        ids = sorted(self.other.made)
        if not ids:
            return
        number = rng.choice(ids)
        folder, asked = _ROUTES[number[:4]]
        method, end = rng.choice(asked)
        body = {"metadata": {"of": self.marker}} if method == "PATCH" else None
        response = http.request(
            method, f"{self._service.base_url}{folder}/{number}{end}", json=body
        )
        if response.status_code != 404:
            self.wrong.append(f"{method} {folder}{end} of the other: {response.status_code}")

    def check_queue(self, stats: Any) -> None:
        """Priorities and numbers of a queue must be those of the owner's own tasks."""
        for state in stats["queues"].values():
            for priority in state["by_priority"]:
                if not self.min_priority <= float(priority) < self.min_priority + 10:
                    self.wrong.append(f"queue tells of priority {priority}")
        # Some answers are on their way.
        if sum(stats["totals"].values()) > len(self.made) + self.num_lines + 100:
            self.wrong.append(f"queue counts {stats['totals']} of {len(self.made)}")

    def _listen(self, rng: random.Random) -> None:
        url = f"ws://127.0.0.1:{self._service.port}/ws/monitor"
        headers = {"Authorization": f"Bearer {self.key}"}
        with connect(url, additional_headers=headers, proxy=None) as socket:
            since = rng.choice((0, None))
            subscription = {"type": "subscribe", "events": ["*"]}
            socket.send(json.dumps(subscription | ({} if since is None else {"since": since})))
            socket.send('{"type": "get_queue_stats"}')
            until = time.monotonic() + rng.uniform(0.5, 3)
            while time.monotonic() < until:
                try:
                    text = str(socket.recv(timeout=0.5))
                except (TimeoutError, ConnectionClosed):
                    continue
                self.num_socket_messages += 1
                self.check("socket", text)
                message = json.loads(text)
                if message["type"] == "queue_stats":
                    self.check_queue(message["data"])


def create_key(service: RunningService, owner: str, *scopes: str) -> str:
    """A new key of the owner."""
    command = [sys.executable, "manage.py", "create_api_key", owner, "--quiet"]
    command += ["--scopes", ",".join(scopes)]
    return subprocess.run(
        command, cwd=ROOT, env=service.env, capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=20, help="of each owner")
    options = parser.parse_args()
    service = RunningService(
        APP_ENV="production",
        SECRET_KEY=secrets.token_hex(32),
        ALLOWED_HOSTS="127.0.0.1",
        DEFAULT_EMBEDDING_MODEL=MINILM,
        EMBEDDING_TIMEOUT_SECONDS="60",
    )
    try:
        service.start()
        admin = create_key(service, "operator", "admin", "monitor")
        service.http.headers["Authorization"] = f"Bearer {admin}"
        service.register_echo()
        owners = [Owner(service, "alice", 10), Owner(service, "bob", 50)]
        owners[0].other, owners[1].other = owners[1], owners[0]
        until = time.monotonic() + options.seconds
        threads = [
            threading.Thread(target=owner.run, args=(seed, until))
            for owner in owners
            for seed in range(options.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(_STATS_CACHED_SECONDS)  # until the statistics are read anew
        for owner in owners:
            with owner.client() as http:
                total = owner.call(http, "GET", "/monitor/stats")["tasks"]["total"]
            num_made = sum(each.startswith("task_") for each in owner.made)
            if not 0 < total <= num_made + owner.num_lines:
                owner.wrong.append(f"statistics count {total} tasks of {num_made} and lines")
            if shared := owner.seen & owner.other.made:
                owner.wrong.append(f"{len(shared)} ids of the other: {sorted(shared)[:3]}")
            print(owner.name, dict(sorted(owner.statuses.items())), end=" ")
            print(f"{num_made} tasks, {owner.num_lines} lines, {total} ended,", end=" ")
            print(f"{len(owner.seen)} ids seen,", end=" ")
            print(f"{owner.num_socket_messages} socket messages, {len(owner.wrong)} wrong")
            for text in owner.wrong[:10]:
                print("  ", text)
        return int(any(owner.wrong for owner in owners))
    finally:
        service.close()


if __name__ == "__main__":
    sys.exit(main())
