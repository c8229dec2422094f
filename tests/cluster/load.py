"""A client that never stops asking: tasks of all kinds, and what must have become of each."""

import contextlib
import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from benchmarks.event_stream import StreamedAnswer, read_events
from benchmarks.running_service import COUNTING, SMOLLM2, wait_for
from tests.cluster.cluster import CLOUD, ECHO, Cluster
from tests.live_server import Client

SUBMIT_EVERY_SECONDS = 0.3
RETRY_SECONDS = 0.5
# Long enough for all but a clock that is wrong.
DEADLINE_SECONDS = 300
# An outage that lets a turn of a conversation start again costs attempts, and no answer.
FINE_OUTCOMES = {"completed", "lost", "failed"}
_ENDED = {"task.completed", "task.failed", "task.cancelled"}


@dataclass(slots=True)
class Submitted:
    """A task; `text` is what it must answer, None where only a model knows."""

    task_id: str
    text: str | None


@dataclass(slots=True)
class Conversation:
    """A dialogue with a model that repeats the prompt; `prompts` in the order of submission."""

    conversation_id: str
    prompts: list[str] = field(default_factory=list)


class Load:
    """Submits from a thread of its own, asks for vectors from another, and hears events in a third.

    As a client should, it asks again until it is answered: a task with its idempotency key, events
    since the last one that it has heard.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._http = cluster.client()
        self.submitted: list[Submitted] = []
        self.conversations: list[Conversation] = []
        # The number of the last event, and how often each end was heard of.
        self._last_seq: int | None = None
        self._ends: Counter[str] = Counter()
        self.faults: list[str] = []
        self._num_vectors = 0
        self._may_submit = threading.Event()
        self._is_idle = threading.Event()
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=each, daemon=True)
            for each in (self._submit_all, self._embed_all, self._hear_all)
        ]

    def start(self) -> None:
        body = {"model": ECHO}
        for _ in range(2):
            answer = self._answered(lambda: self._http.post("/conversations", json=body))
            self.conversations.append(Conversation(answer["conversation_id"]))
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self._last_seq is not None)

    def close(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(20)

    def resume(self) -> None:
        self._may_submit.set()

    def generating(self) -> str:
        """Submit a long task of the local model; its id once it runs."""
        submitted = self._submit({"model": SMOLLM2, **COUNTING, "max_tokens": 150}, None)
        wait_for(lambda: self.task(submitted.task_id)["status"] == "processing", 60)
        return submitted.task_id

    def task(self, task_id: str) -> dict[str, Any]:
        return self._get(f"/tasks/{task_id}")

    def report(self, task_id: str) -> dict[str, Any]:
        return self._get(f"/tasks/{task_id}/report")

    def outcomes(self, task_id: str) -> list[str]:
        return [attempt["outcome"] for attempt in self.report(task_id)["attempts"]]

    def settle(self, within_seconds: float) -> str:
        """Submit no more; all that was submitted has to end in time. Says how long what took."""
        began_at = time.monotonic()
        num_vectors = self._num_vectors
        took: dict[str, float] = {}

        def await_(what: str, condition: Callable[[], object]) -> None:
            left = began_at + within_seconds - time.monotonic()
            try:
                wait_for(condition, left, every_seconds=0.1)
            except TimeoutError as exc:
                message = f"No {what} after {within_seconds} s; {took}; {self.faults}"
                message += f"; {self.unfinished()}"
                raise AssertionError(message) from exc
            took[what] = round(time.monotonic() - began_at, 1)

        self._may_submit.clear()
        await_("submission", self._is_idle.is_set)
        await_("ends", lambda: not self.unfinished())
        submitted = {each.task_id for each in self.submitted}
        await_("events", lambda: submitted <= self._ends.keys())
        # One that was asked for before may still be answered; the next one was asked for after it.
        await_("vector", lambda: self._num_vectors > num_vectors + 1)
        return f"{len(submitted)} tasks; seconds after healing: {took}"

    def unfinished(self) -> list[dict[str, Any]]:
        """The tasks that have not ended."""
        return [
            task
            for status in ("pending", "processing")
            for task in self._get(f"/tasks?status={status}&limit=100")["results"]
        ]

    def what_is_wrong(self) -> list[str]:
        """Of all that has ended since the last time: what is not as it must be."""
        wrong = list(self.faults)
        for each in self.submitted:
            wrong += self._wrong_with(each)
        for conversation in self.conversations:
            body = self._get(f"/conversations/{conversation.conversation_id}/messages?limit=1000")
            found = [(message["role"], message["content"]) for message in body["messages"]]
            expected = [
                (role, prompt) for prompt in conversation.prompts for role in ("user", "assistant")
            ]
            if found != expected:
                wrong.append(f"{conversation.conversation_id}: {found} instead of {expected}")
        for task_id, num_ends in self._ends.items():
            if num_ends != 1:
                wrong.append(f"{task_id}: its end was heard of {num_ends} times")
        self.submitted.clear()
        self._ends.clear()
        self.faults.clear()
        return wrong

    def _wrong_with(self, submitted: Submitted) -> list[str]:
        report = self.report(submitted.task_id)
        task, attempts = report["task"], report["attempts"]
        outcomes = [attempt["outcome"] for attempt in attempts]
        answer = StreamedAnswer()
        answer.take(read_events(self._http, submitted.task_id))
        found = {
            "status": task["status"] == "completed",
            "attempts": outcomes.count("completed") == 1 and set(outcomes) <= FINE_OUTCOMES,
        }
        if found["status"]:
            text = task["result"]["text"]
            found["text"] = bool(text) and submitted.text in (None, text)
            found["stream"] = answer.text == text
        wrong = [name for name, is_right in found.items() if not is_right]
        if not wrong:
            return []
        return [f"{submitted.task_id}: {wrong}, {task}, {attempts}, stream {answer.text!r}"]

    def _submit_all(self) -> None:
        for number in itertools.count():
            self._is_idle.set()
            self._may_submit.wait()
            self._is_idle.clear()
            if not self._may_submit.is_set():
                continue
            words = f"one two three four five six seven {number}"
            if number % 4 == 0:
                body = {"model": SMOLLM2, **COUNTING, "max_tokens": 24}
                self._submit(body, None)
            elif number % 4 == 1:
                self._submit({"model": ECHO, "prompt": words}, words)
            elif number % 4 == 2:
                self._submit({"model": CLOUD, "prompt": words}, words)
            else:
                conversation = self.conversations[number // 4 % len(self.conversations)]
                turn = {"conversation_id": conversation.conversation_id, "prompt": words}
                self._submit(turn, words)
                conversation.prompts.append(words)
            if self._is_over.wait(SUBMIT_EVERY_SECONDS):
                return

    def _submit(self, body: dict[str, Any], text: str | None) -> Submitted:
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        body = {"deadline_seconds": DEADLINE_SECONDS, **body}
        task = self._answered(lambda: self._http.post("/tasks", json=body, headers=headers))
        submitted = Submitted(task["task_id"], text)
        self.submitted.append(submitted)
        return submitted

    def _get(self, path: str) -> dict[str, Any]:
        return self._answered(lambda: self._http.get(path))

    def _answered(self, ask: Callable[[], httpx.Response]) -> dict[str, Any]:
        """The body of an answer; asks again while the service cannot be reached, or says 503."""
        while True:
            with contextlib.suppress(httpx.TransportError):
                response = ask()
                if response.is_success:
                    body: dict[str, Any] = response.json()
                    return body
                if response.status_code != 503:
                    self.faults.append(f"{response.status_code}: {response.text}")
            time.sleep(RETRY_SECONDS)

    def _embed_all(self) -> None:
        with self._cluster.client(timeout_seconds=8) as http:
            body = {"texts": ["a cat"]}
            while not self._is_over.wait(SUBMIT_EVERY_SECONDS):
                vectors = self._answered(lambda: http.post("/embeddings", json=body))
                if [len(vector) for vector in vectors["embeddings"]] != [384]:
                    self.faults.append(f"vectors: {vectors}")
                self._num_vectors += 1

    def _hear_all(self) -> None:
        url = f"{self._cluster.base_url.replace('http', 'ws', 1)}/ws/monitor"
        headers = {"Authorization": f"Bearer {self._cluster.key}"}
        while not self._is_over.is_set():
            try:
                with connect(
                    url,
                    additional_headers=headers,
                    proxy=None,
                    open_timeout=5,
                    close_timeout=1,
                    ping_interval=2,
                    ping_timeout=3,
                ) as connection:
                    self._hear(Client(connection))
            except (OSError, WebSocketException):
                time.sleep(RETRY_SECONDS)

    def _hear(self, client: Client) -> None:
        if self._last_seq is None:
            self._last_seq = client.connected["seq"]
        client.subscribe("task.*", since=self._last_seq)
        while not self._is_over.is_set():
            try:
                message = client.hear(1)
            except TimeoutError:
                continue
            if message["type"] == "error":
                self.faults.append(f"events: {message}")
                self._last_seq = message["data"]["details"]["since"]
            elif message["type"] in _ENDED:
                self._ends[message["data"]["task_id"]] += 1
            if message["type"] in ("task.queued", "task.started", *_ENDED):
                if self._last_seq is not None and message["seq"] <= self._last_seq:
                    self.faults.append(f"an event twice, or out of order: {message}")
                self._last_seq = message["seq"]
