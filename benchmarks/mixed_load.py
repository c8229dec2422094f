"""Clients of all kinds of tasks, which ask again where a process was killed, and check each answer.

Whatever is submitted has an idempotency key, so that a client whose request got no answer can send
it again and still has one task.
"""

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from benchmarks.event_stream import StreamedAnswer, read_events
from benchmarks.running_service import MINILM, SMOLLM2, RunningService
from tests.webhook_receiver import Receiver

CLOUD, ECHO, SLOW_ECHO = "cloud", "echo", "slow-echo"
WORDS = "alpha beta gamma delta epsilon zeta eta theta"
_CHAT = "/v1/chat/completions"
_LIMIT_SECONDS = 1200.0
_NUM_LINES = 8  # of a batch
_NUM_TURNS = 3  # submitted at once
_MIN_SIMILARITY = 0.999
_LOGGED_EVENTS = ["task.queued", "task.started", "task.completed", "task.failed", "task.cancelled"]
_LOGGED_EVENTS += ["model.loaded", "model.unloaded"]
_ENDS = {"task.completed", "task.failed", "task.cancelled"}
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Load:
    """Clients in threads, until `stop`; what they were promised, and what they found wrong.

    `successes`: by kind, when each was begun and when it had ended, by the clock.
    """

    def __init__(self, service: RunningService, receiver: Receiver, seed: int) -> None:
        self.service = service
        self.receiver = receiver
        self.accepted: set[str] = set()
        self.batches: set[str] = set()
        self.ends: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.successes: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self.feeds: list[Feed] = []
        self._seed = seed
        self._stopping, self._closing = threading.Event(), threading.Event()
        self._clients: list[threading.Thread] = []
        self._readers: list[threading.Thread] = []

    def start(self, **num_clients: int) -> None:
        """So many clients of each kind."""
        for kind, num in num_clients.items():
            for _ in range(num):
                rng = random.Random(f"{self._seed} {len(self._clients)}")  # noqa: S311 (no secret)
                client = Client(self, kind, rng)
                self._clients.append(threading.Thread(target=client.run, args=(self._stopping,)))
        self.feeds = [Feed(self) for _ in range(2)]
        self._readers = [
            threading.Thread(target=feed.run, args=(self._closing,)) for feed in self.feeds
        ]
        for thread in (*self._readers, *self._clients):
            thread.start()

    def untold(self) -> list[str]:
        """Of what was accepted, the tasks whose ends no reader of events has heard of."""
        return [pk for pk in self.accepted if not any(pk in feed.ended for feed in self.feeds)]

    def stop(self) -> None:
        """Have each client end what it has begun."""
        self._stopping.set()
        for thread in self._clients:
            thread.join()

    def close(self) -> None:
        """Have the readers of events go as well."""
        self.stop()
        self._closing.set()
        for thread in self._readers:
            thread.join()

    def succeeded(self, kind: str, begun_at: float) -> None:
        self.successes[kind].append((begun_at, time.time()))


class Client:
    """Does one kind of work again and again."""

    def __init__(self, load: Load, kind: str, rng: random.Random) -> None:
        self.load = load
        self.kind = kind
        self.rng = rng
        self.http = httpx.Client(base_url=load.service.base_url, timeout=70, trust_env=False)
        self._vector: list[float] = []

    def run(self, stopping: threading.Event) -> None:
        work: Callable[[], None] = getattr(self, self.kind)
        while not stopping.wait(self.rng.uniform(0, 1)):
            begun_at = time.time()
            try:
                work()
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is a finding
                self.load.wrong.append(f"{self.kind}: {exc!r}")
            else:
                self.load.succeeded(self.kind, begun_at)

    def echo(self) -> None:
        """A short task, whose end a webhook tells."""
        prompt = f"{self.number()} {WORDS}"
        url = self.load.receiver.url()
        task = self.ended(self.submit(ECHO, prompt, webhook_url=url))
        self.expect(task["result"]["text"] == prompt, task)

    def cloud(self) -> None:
        task = self.ended(self.submit(CLOUD, WORDS))
        self.expect(task["result"]["text"] == WORDS, task)

    def local(self) -> None:
        prompt = f"Say something about the number {self.number()}."
        task = self.ended(self.submit(SMOLLM2, prompt, max_tokens=self.rng.randint(4, 40)))
        self.expect(self.has_failed(task) or bool(task["result"]["text"]), task)

    def structured(self) -> None:
        schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": _SCHEMA}}
        prompt = f"Describe person {self.number()} as JSON."
        task = self.ended(self.submit(SMOLLM2, prompt, max_tokens=96, response_format=schema))
        self.expect(self.has_failed(task) or set(task["result"]["parsed"]) == {"name", "age"}, task)

    def stream(self) -> None:
        """The text of a stream, put together over all reconnections, is that of the result."""
        model = self.rng.choice((SMOLLM2, SLOW_ECHO))
        answer = StreamedAnswer()
        task_id = self.submit(model, f"{self.number()} {WORDS}", max_tokens=40, stream=True)
        api = httpx.Client(
            base_url=f"{self.load.service.base_url}/api/v1", timeout=70, trust_env=False
        )
        with api:
            while answer.end is None:
                try:
                    answer.take(read_events(api, task_id, answer.last_id))
                except (httpx.TransportError, httpx.HTTPStatusError):
                    time.sleep(0.2)
        task = self.ended(task_id)
        self.expect(answer.text == (task["result"] or {"text": ""})["text"], [answer.text, task])

    def conversation(self) -> None:
        """Turns that are submitted at once: each that was completed is there once, in order."""
        url = "/api/v1/conversations"
        conversation_id = self.call("POST", url, {})["conversation_id"]
        model = self.rng.choice((SMOLLM2, ECHO, ECHO))
        prompts = [f"Turn {n} of {self.number()}" for n in range(_NUM_TURNS)]
        fields = {"conversation_id": conversation_id, "max_tokens": 8}
        tasks = [self.ended(each) for each in [self.submit(model, p, **fields) for p in prompts]]
        answers = {
            prompt: task["result"]["text"]
            for prompt, task in zip(prompts, tasks, strict=True)
            if not self.has_failed(task)
        }
        messages = self.call("GET", f"{url}/{conversation_id}/messages")["messages"]
        told = [each["content"] for each in messages]
        self.expect(told == [text for turn in answers.items() for text in turn], messages)

    def embeddings(self) -> None:
        """The vector of a text is the same at any time."""
        body = {"model_name": MINILM, "texts": [WORDS, self.number()]}
        vector = self.call("POST", "/api/v1/embeddings", body)["embeddings"][0]
        self._vector = self._vector or vector
        similarity = sum(a * b for a, b in zip(self._vector, vector, strict=True))
        self.expect(similarity > _MIN_SIMILARITY, similarity)

    def response(self) -> None:
        """A response in the background."""
        body = {"model": ECHO, "input": f"{self.number()} {WORDS}", "background": True}
        response = self.call("POST", "/v1/responses", body, key=self.number())
        self.load.accepted.add(response["id"].replace("resp_", "task_"))
        url, give_up_at = f"/v1/responses/{response['id']}", time.monotonic() + _LIMIT_SECONDS
        while response["status"] in ("queued", "in_progress") and time.monotonic() < give_up_at:
            time.sleep(0.3)
            response = self.call("GET", url)
        self.expect(response["output"][0]["content"][0]["text"] == body["input"], response)

    def cancel(self) -> None:
        """A long task, cancelled in its midst."""
        task_id = self.submit(SMOLLM2, f"Count to 1000: {self.number()}", max_tokens=100)
        time.sleep(self.rng.uniform(0, 3))
        self.call("POST", f"/api/v1/tasks/{task_id}/cancel", None, also=(409,))
        status = self.ended(task_id)["status"]
        self.expect(status in ("cancelled", "completed", "failed"), status)

    def batch(self) -> None:
        """All lines have one answer each, in order."""
        message = [{"role": "user", "content": WORDS}]
        bodies = [{"model": (ECHO, CLOUD)[n % 2], "messages": message} for n in range(_NUM_LINES)]
        lines = [
            json.dumps({"custom_id": str(n), "method": "POST", "url": _CHAT, "body": body})
            for n, body in enumerate(bodies)
        ]
        file = self.call("POST", "/v1/files", files={"file": ("l.jsonl", "\n".join(lines))})
        asked = {"input_file_id": file["id"], "endpoint": _CHAT, "completion_window": "24h"}
        batch = self.call("POST", "/v1/batches", asked)
        self.load.batches.add(batch["id"])
        give_up_at = time.monotonic() + _LIMIT_SECONDS
        while not batch["completed_at"] and time.monotonic() < give_up_at:
            time.sleep(0.5)
            batch = self.call("GET", f"/v1/batches/{batch['id']}")
        output = self.request("GET", f"/v1/files/{batch['output_file_id']}/content").text
        answers = [json.loads(line) for line in output.splitlines()]
        ids = [answer["custom_id"] for answer in answers]
        self.expect(ids == [str(n) for n in range(_NUM_LINES)], batch | {"output": output[:1000]})

    def number(self) -> str:
        return f"{self.rng.getrandbits(64):016x}"

    def expect(self, is_right: bool, what: Any) -> None:
        if not is_right:
            self.load.wrong.append(f"{self.kind}: {json.dumps(what)[:1500]}")

    def has_failed(self, task: dict[str, Any]) -> bool:
        """Whether it was given up as it should be: its worker died twice while it ran alone."""
        return bool(task["error_code"] == "worker_lost")

    def submit(self, model: str, prompt: str, **fields: Any) -> str:
        """Submit until it is accepted; the id."""
        body = {"model": model, "prompt": prompt, "idempotency_key": self.number(), **fields}
        task_id = str(self.call("POST", "/api/v1/tasks", body)["task_id"])
        self.load.accepted.add(task_id)
        return task_id

    def ended(self, task_id: str) -> dict[str, Any]:
        """The task once it has ended."""
        give_up_at = time.monotonic() + _LIMIT_SECONDS
        while time.monotonic() < give_up_at:
            task: dict[str, Any] = self.call("GET", f"/api/v1/tasks/{task_id}?wait=20")
            if task["status"] not in ("pending", "processing"):
                self.load.ends[f"{task['status']} {task['error_code'] or ''}".strip()] += 1
                return task
        raise TimeoutError(f"{task_id} has not ended within {_LIMIT_SECONDS:.0f} s")

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        return self.request(method, path, body, **options).json()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str = "",
        files: Any = None,
        also: tuple[int, ...] = (),
    ) -> httpx.Response:
        """The answer, asking again while there is none or none can be given now."""
        give_up_at = time.monotonic() + _LIMIT_SECONDS
        given: dict[str, Any] = {"json": body} if files is None else {"files": files}
        given |= {"data": {"purpose": "batch"}} if files else {}
        given |= {"headers": {"Idempotency-Key": key}} if key else {}
        while time.monotonic() < give_up_at:
            begun_at = time.time()
            try:
                response = self.http.request(method, path, **given)
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            self.load.statuses[response.status_code] += 1
            if response.is_success or response.status_code in also:
                self.load.succeeded("request", begun_at)
                return response
            if response.status_code != 503:
                text = f"{response.status_code} {response.text[:500]}"
                raise RuntimeError(f"{method} {path}: {text}")
            time.sleep(0.3)
        raise TimeoutError(f"{method} {path}: no answer within {_LIMIT_SECONDS:.0f} s")


class Feed:
    """A reader of events who comes again after the last one that it has seen."""

    def __init__(self, load: Load) -> None:
        self.num_events = self.num_connections = self.num_resyncs = 0
        self.ended: Counter[str] = Counter()
        self._load = load
        self._seq: int | None = None

    def run(self, stopping: threading.Event) -> None:
        url = f"ws://127.0.0.1:{self._load.service.port}/ws/monitor"
        while not stopping.wait(0.2):
            try:
                with connect(url, proxy=None) as socket:
                    self.num_connections += 1
                    since = {} if self._seq is None else {"since": self._seq}
                    asked = {"type": "subscribe", "events": _LOGGED_EVENTS, **since}
                    socket.send(json.dumps(asked))
                    while not stopping.is_set():
                        try:
                            self._take(json.loads(socket.recv(timeout=1)))
                        except TimeoutError:
                            continue
            except (OSError, WebSocketException, TimeoutError):
                continue

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "error":
            self.num_resyncs += 1
            self._seq = message["data"]["details"]["since"]
        if message["type"] not in _LOGGED_EVENTS:
            return
        seq = message["seq"]
        if self._seq is not None and seq != self._seq + 1:
            self._load.wrong.append(f"feed: event {seq} comes after {self._seq}")
        self._seq = seq
        self.num_events += 1
        if message["type"] in _ENDS:
            self.ended[message["data"]["task_id"]] += 1
