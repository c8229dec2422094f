"""GET /tasks/{id}/stream, as the server calls it."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError, connections
from rest_framework.test import APIClient

from benchmarks.event_stream import EventParser, ServerEvent, StreamedAnswer
from inference.api import task_stream
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import claim, finish, sweep
from inference.models import GenerationTask
from monitoring.redis.client import client as redis_client
from monitoring.streams import delta_stream, follower
from sopllm.handler import PooledHandler
from tests.conftest import Valkey
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed

pytestmark = pytest.mark.django_db(transaction=True)

NewTask = Callable[..., GenerationTask]

LIMIT_SECONDS = 30.0
DELTAS = ["Hello", " world", " 🙂", "\n\n", "\u2028data: no\r\n", " end"]
TEXT = "".join(DELTAS)


class Stream:
    """A client's connection to a handler, as a server holds it."""

    def __init__(self, handler: PooledHandler, task_id: str, **request: Any) -> None:
        self.reading = StreamedAnswer()
        self.events: list[ServerEvent] = []
        self.body = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.may_send = asyncio.Event()
        self.may_send.set()
        self._parser = EventParser()
        self._news = asyncio.Event()
        self._gone = asyncio.Event()
        self._messages = [{"type": "http.request", "body": b""}]
        self.serving = asyncio.create_task(self._serve(handler, task_id, **request))

    async def _serve(
        self,
        handler: PooledHandler,
        task_id: str,
        query: str = "",
        method: str = "GET",
        slash: str = "",
        **headers: str,
    ) -> None:
        headers = {"host": "127.0.0.1", "accept": "text/event-stream", **headers}
        scope = {
            "type": "http",
            "client": ("127.0.0.1", 1),
            "method": method,
            "path": f"/api/v1/tasks/{task_id}/stream{slash}",
            "query_string": query.encode(),
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        }
        await handler(scope, self._receive, self._send)

    async def _receive(self) -> Any:
        if self._messages:
            return self._messages.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.may_send.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            self.body += message.get("body", b"")
            events = self._parser.feed(message.get("body", b"")) if self.status == 200 else []
            self.events += [event for event in events if event.type]
            self.reading.take(events)
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until what was sent fulfils a condition."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def until_text(self, text: str) -> None:
        await self.until(lambda: self.reading.text == text)

    async def until_over(self) -> list[ServerEvent]:
        """All events, when the server has sent the last."""
        await asyncio.wait_for(self.serving, LIMIT_SECONDS)
        return self.events

    async def disconnect(self) -> None:
        self._gone.set()
        await asyncio.wait_for(self.serving, LIMIT_SECONDS)


def serve(conversation: Callable[[PooledHandler], Awaitable[Any]]) -> Any:
    """Run a conversation with a web process of its own."""

    async def run() -> Any:
        handler = PooledHandler()
        try:
            return await conversation(handler)
        finally:
            await handler.stop()

    return asyncio.run(run())


def stream_of(task: GenerationTask, **request: Any) -> Stream:
    """A stream that has come to its end."""

    async def conversation(handler: PooledHandler) -> Stream:
        stream = Stream(handler, task.pk, **request)
        await stream.until_over()
        return stream

    stream: Stream = serve(conversation)
    return stream


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    def call() -> Any:
        try:
            return function(*arguments)
        finally:
            connections.close_all()

    return await asyncio.to_thread(call)


def write(task: GenerationTask, deltas: list[str], attempt: int = 1) -> None:
    """What an attempt has said so far; what was sent before is not sent twice."""
    writer = delta_stream.DeltaWriter(task.pk, attempt)
    for delta in deltas:
        writer.write(delta)
        writer.flush()


def complete(lease: claim.Lease, text: str = TEXT) -> None:
    assert finish.complete(lease, answer(text), TIMINGS)


def answered(task: GenerationTask, deltas: list[str] = DELTAS) -> GenerationTask:
    """The task with its stream and its result."""
    lease = claimed(task)
    write(task, deltas)
    complete(lease, "".join(deltas))
    return task


def lose_worker(lease: claim.Lease) -> None:
    """What becomes of a task whose worker is gone."""
    row = GenerationTask.objects.filter(pk=lease.task.pk)
    row.update(lease_until=lease.task.created_at)
    sweep.sweep()


def has_tokens(reading: StreamedAnswer, num_tokens: int) -> bool:
    return reading.num_tokens >= num_tokens


def types(stream: Stream) -> list[str]:
    return [event.type for event in stream.events]


def test_text_comes_as_it_is_written_then_the_task(new_task: NewTask, api: APIClient) -> None:
    task = new_task()

    async def conversation(handler: PooledHandler) -> Stream:
        stream = Stream(handler, task.pk)
        await stream.until(lambda: stream.body)  # the client knows that it is connected
        lease = await in_thread(claimed, task)
        for number in range(1, len(DELTAS) + 1):
            write(task, DELTAS[:number])
            await stream.until_text("".join(DELTAS[:number]))
        await in_thread(complete, lease)
        await stream.until_over()
        assert handler._follower.num_readers == 0
        return stream

    stream = serve(conversation)
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-cache"
    assert stream.headers["x-accel-buffering"] == "no"
    assert "content-length" not in stream.headers
    tokens = [event.data for event in stream.events[:-1]]
    assert tokens == [{"text": text, "index": index} for index, text in enumerate(DELTAS)]
    assert types(stream) == ["token"] * len(DELTAS) + ["completed"]
    assert stream.events[-1].data == api.get(f"/api/v1/tasks/{task.pk}").json()


def test_stream_of_an_ended_task_is_the_same(new_task: NewTask) -> None:
    stream = stream_of(answered(new_task()))
    assert [event.id for event in stream.events] == [
        *("1-5-1", "1-11-2", "1-13-3", "1-15-4", "1-26-5", "1-30-6", "end")
    ]
    assert stream.reading.text == TEXT


def test_deltas_from_redis_and_from_the_row_are_the_same_text(new_task: NewTask) -> None:
    task = answered(new_task())
    delta_stream.delete([task.pk])
    stream = stream_of(task)
    assert types(stream) == ["token", "completed"]
    assert stream.reading.text == TEXT


@pytest.mark.parametrize("has_stream", [True, False])
def test_every_event_of_an_ended_task_can_be_resumed_after(
    new_task: NewTask, has_stream: bool
) -> None:
    task = answered(new_task())
    whole = stream_of(task)
    if not has_stream:
        delta_stream.delete([task.pk])
    for number, event in enumerate(whole.events[:-1], 1):
        rest = stream_of(task, last_event_id=event.id)
        assert "".join(DELTAS[:number]) + rest.reading.text == TEXT
        assert rest.events[-1] == whole.events[-1]


def test_run_is_resumed_at_any_point_from_any_process(new_task: NewTask) -> None:
    task = new_task()
    words = [f"word{number} " for number in range(200)]
    random_ = random.Random(1)  # noqa: S311 - no secrets

    async def conversation(handler: PooledHandler) -> list[StreamedAnswer]:
        other = PooledHandler()
        lease = await in_thread(claimed, task)
        readings = [StreamedAnswer() for _ in range(20)]

        async def read_on(reading: StreamedAnswer) -> None:
            """Go away at some point, and come back to the other process."""
            for each in (handler, other):
                goal = random_.randrange(reading.num_tokens, len(words))
                stream = Stream(each, task.pk, last_event_id=reading.last_id)
                stream.reading = reading
                await stream.until(partial(has_tokens, reading, goal))
                await stream.disconnect()
            stream = Stream(handler, task.pk, last_event_id=reading.last_id)
            stream.reading = reading
            await stream.until_over()

        async def write_all() -> None:
            writer = delta_stream.DeltaWriter(task.pk, 1)
            for word in words:
                writer.write(word)
                await asyncio.to_thread(writer.flush)
            await in_thread(complete, lease, "".join(words))

        await asyncio.gather(write_all(), *map(read_on, readings))
        assert handler._follower.num_readers == other._follower.num_readers == 0
        await other.stop()
        return readings

    for reading in serve(conversation):
        assert reading.text == "".join(words)
        assert reading.num_restarts == 0


def test_address_may_say_where_to_resume(new_task: NewTask) -> None:
    task = answered(new_task())
    assert stream_of(task, query="last_event_id=1-11-2").reading.text == "".join(DELTAS[2:])
    # An EventSource that connects again repeats the address, and adds the header.
    both = stream_of(task, query="last_event_id=1-11-2", last_event_id="1-26-5")
    assert both.reading.text == DELTAS[-1]


def test_client_that_has_it_all_is_told_not_to_come_back(new_task: NewTask) -> None:
    stream = stream_of(answered(new_task()), last_event_id="end")
    assert (stream.status, stream.body) == (204, b"")


@pytest.mark.parametrize(
    "event_id",
    ["x", "1", "1-2", "1-2-3-4", "1-2--3", "-1-2-3", "1-2-3 ", "1-2-99999999999", "²-1-1"],
)
def test_malformed_id_is_refused(new_task: NewTask, api: APIClient, event_id: str) -> None:
    task = answered(new_task())
    response = api.get(f"/api/v1/tasks/{task.pk}/stream", {"last_event_id": event_id})
    assert response.status_code == 400
    assert response.json()["error"] == "validation_error"
    assert "last_event_id" in response.json()["details"]


def test_final_id_is_none_of_a_task_that_runs(new_task: NewTask) -> None:
    assert stream_of(new_task(), last_event_id="end").status == 400


def test_unknown_parameter_is_refused(new_task: NewTask) -> None:
    assert stream_of(new_task(), query="after=3").status == 400


def test_errors_are_json_for_a_client_that_accepts_events_alone(new_task: NewTask) -> None:
    missing = GenerationTask(id=f"task_{0:032x}")
    for stream, status, code in (
        (stream_of(missing), 404, "not_found"),
        (stream_of(new_task(), last_event_id="x"), 400, "validation_error"),
        (stream_of(new_task(), method="POST"), 405, "method_not_allowed"),
    ):
        assert stream.status == status
        assert stream.headers["content-type"] == "application/json"
        assert f'"error":"{code}"'.encode() in stream.body


def test_task_of_another_owner_has_no_stream(new_task: NewTask) -> None:
    assert stream_of(new_task(owner="someone else")).status == 404


def test_head_makes_no_events(new_task: NewTask) -> None:
    stream = stream_of(new_task(), method="HEAD")
    assert (stream.status, stream.body) == (200, b"")
    assert stream.headers["content-type"] == "text/event-stream"


def test_path_may_end_with_a_slash(new_task: NewTask) -> None:
    task = answered(new_task())

    assert stream_of(task, slash="/").reading.text == TEXT


def test_task_that_was_cancelled_before_it_started_has_no_tokens(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_stream, "_LOOK_SECONDS", 10 * LIMIT_SECONDS)  # its end is announced
    task = new_task()

    async def conversation(handler: PooledHandler) -> list[ServerEvent]:
        stream = Stream(handler, task.pk)
        await stream.until(lambda: stream.body)
        await in_thread(finish.cancel, task)
        return await stream.until_over()

    [event] = serve(conversation)
    assert (event.type, event.data["status"]) == ("cancelled", "cancelled")
    assert [each.type for each in stream_of(task).events] == ["cancelled"]


def test_failed_task_keeps_its_text(new_task: NewTask) -> None:
    task = new_task()
    lease = claimed(task)
    write(task, DELTAS[:2])
    failure = InferenceError("It broke.", ErrorCode.INTERNAL_ERROR)
    finish.fail(lease, failure, answer("Hello world", "error"), TIMINGS)
    stream = stream_of(task)
    assert types(stream) == ["token", "token", "failed"]
    assert stream.events[-1].data["error"] == "It broke."


def test_lost_worker_makes_the_text_begin_anew(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_stream, "_LOOK_SECONDS", 0.05)
    task = new_task()

    async def conversation(handler: PooledHandler) -> tuple[Stream, Stream]:
        stream = Stream(handler, task.pk)
        lost = await in_thread(claimed, task)
        write(task, ["lost", " text"])
        await stream.until_text("lost text")
        await in_thread(lose_worker, lost)
        await stream.until(lambda: stream.reading.num_restarts)  # at once, not with its new text
        late = Stream(handler, task.pk)
        lease = await in_thread(claimed, task)
        write(task, ["lost", " text", " for ever"])
        write(task, DELTAS, attempt=2)
        write(task, ["lost", " text", " for ever", " and ever"])
        await in_thread(complete, lease)
        await stream.until_over()
        await late.until_over()
        return stream, late

    stream, late = serve(conversation)
    assert types(stream) == ["token"] * 2 + ["restart"] + ["token"] * len(DELTAS) + ["completed"]
    assert stream.events[2].data == {"attempt": 2}
    assert stream.reading.text == TEXT
    assert late.reading.num_restarts == 0
    assert late.reading.text == TEXT
    for event in stream.events[:-1]:
        resumed = stream_of(task, last_event_id=event.id)
        is_of_lost = event.id.startswith("1-")
        assert resumed.reading.num_restarts == is_of_lost
        assert TEXT.endswith(resumed.reading.text)
        assert not is_of_lost or resumed.reading.text == TEXT


def test_tokens_of_a_task_that_lost_its_last_worker_are_void(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MAX_ATTEMPTS", 1)
    task = new_task()

    async def conversation(handler: PooledHandler) -> Stream:
        stream = Stream(handler, task.pk)
        lost = await in_thread(claimed, task)
        write(task, ["lost"])
        await stream.until_text("lost")
        await in_thread(lose_worker, lost)
        await stream.until_over()
        return stream

    assert types(serve(conversation)) == ["token", "restart", "failed"]
    assert types(stream_of(task)) == ["failed"]


def test_redis_that_comes_back_empty_costs_no_text(
    new_task: NewTask, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_RECONNECT_SECONDS", 0.05)
    task = new_task()
    words = [f"word{number} " for number in range(20)]

    async def conversation(handler: PooledHandler) -> tuple[Stream, Stream]:
        writer = delta_stream.DeltaWriter(task.pk, 1)

        def write_words(begin: int, end: int) -> None:
            for word in words[begin:end]:
                writer.write(word)
                writer.flush()

        stream = Stream(handler, task.pk)
        lease = await in_thread(claimed, task)
        write_words(0, 5)
        await stream.until_text("".join(words[:5]))
        valkey.stop()
        await asyncio.to_thread(write_words, 5, 10)
        await asyncio.to_thread(valkey.start)
        redis_client().flushall()
        await asyncio.to_thread(write_words, 10, 15)
        await stream.until_text("".join(words[:15]))  # what was kept back came late, and once
        late = Stream(handler, task.pk)
        await asyncio.to_thread(write_words, 15, 20)
        await stream.until_text("".join(words))
        assert late.reading.text == ""  # its beginning is lost: no deltas out of the middle
        await in_thread(complete, lease, "".join(words))
        await stream.until_over()
        await late.until_over()
        return stream, late

    stream, late = serve(conversation)
    assert types(stream) == ["token"] * 20 + ["completed"]
    assert types(late) == ["token", "completed"]
    assert late.reading.text == "".join(words)
    for event in stream.events[:-1]:
        rest = stream_of(task, last_event_id=event.id).reading
        assert "".join(words).endswith(rest.text)
        assert rest.num_restarts == 0


def test_stream_works_from_the_row_without_redis(
    new_task: NewTask, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_stream, "_LOOK_SECONDS", 0.05)
    task, ended = new_task(), answered(new_task())
    valkey.stop()

    async def conversation(handler: PooledHandler) -> list[Stream]:
        running, old = Stream(handler, task.pk), Stream(handler, ended.pk)
        await running.until(lambda: running.body)
        lease = await in_thread(claimed, task)
        await in_thread(complete, lease)
        await running.until_over()
        await old.until_over()
        return [running, old]

    for stream in serve(conversation):
        assert types(stream) == ["token", "completed"]
        assert stream.reading.text == TEXT


def test_end_that_nobody_announced_is_noticed(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_stream, "_LOOK_SECONDS", 0.05)
    task = new_task()

    async def conversation(handler: PooledHandler) -> Stream:
        stream = Stream(handler, task.pk)
        lease = await in_thread(claimed, task)
        write(task, DELTAS[:2])
        await stream.until_text("Hello world")
        with monkeypatch.context() as patch:
            patch.setattr(delta_stream, "end", lambda *args: None)
            await in_thread(complete, lease)
        await stream.until_over()
        return stream

    stream = serve(conversation)
    assert types(stream) == ["token", "token", "token", "completed"]
    assert stream.reading.text == TEXT


def test_database_that_does_not_answer_ends_no_stream(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_stream, "_LOOK_SECONDS", 0.05)
    task = new_task()

    async def conversation(handler: PooledHandler) -> list[ServerEvent]:
        in_its_thread = handler.in_thread
        num_failures = 0

        async def fail_at_first(*args: Any) -> Any:
            nonlocal num_failures
            if num_failures < 3 and args[0] != handler._respond:
                num_failures += 1
                raise OperationalError("the database is away")
            return await in_its_thread(*args)

        monkeypatch.setattr(handler, "in_thread", fail_at_first)
        stream = Stream(handler, task.pk)
        await stream.until(lambda: stream.body)
        lease = await in_thread(claimed, task)
        await in_thread(complete, lease)
        events = await stream.until_over()
        assert num_failures == 3
        return events

    assert [event.type for event in serve(conversation)] == ["token", "completed"]


def test_stream_of_a_deleted_task_ends(new_task: NewTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_stream, "_LOOK_SECONDS", 0.05)
    task = new_task()

    async def conversation(handler: PooledHandler) -> list[ServerEvent]:
        stream = Stream(handler, task.pk)
        await stream.until(lambda: stream.body)
        await in_thread(GenerationTask.objects.filter(pk=task.pk).delete)
        return await stream.until_over()

    assert serve(conversation) == []


@pytest.mark.parametrize("is_slow", [True, False])
def test_client_that_leaves_costs_nothing_afterwards(new_task: NewTask, is_slow: bool) -> None:
    task = new_task()

    async def conversation(handler: PooledHandler) -> None:
        stream = Stream(handler, task.pk)
        await stream.until(lambda: handler._follower.num_readers == 1)
        if is_slow:  # it has gone while the server waits for it to take more
            stream.may_send.clear()
            write(task, DELTAS)
        leaving = asyncio.create_task(stream.disconnect())
        async with asyncio.timeout(LIMIT_SECONDS):
            while handler._follower.num_readers:
                await asyncio.sleep(0)
        stream.may_send.set()
        await leaving
        assert not handler._follower._cursors

    serve(conversation)


def test_slow_client_gets_everything(new_task: NewTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "MAX_WAITING", 10)
    monkeypatch.setattr(follower, "PAGE", 5)
    task = new_task()
    words = [f"word{number} " for number in range(100)]

    async def conversation(handler: PooledHandler) -> Stream:
        slow, quick = Stream(handler, task.pk), Stream(handler, task.pk)
        lease = await in_thread(claimed, task)
        write(task, words[:5])
        await slow.until_text("".join(words[:5]))
        slow.may_send.clear()
        for number in range(5, 100):
            write(task, words[: number + 1])
        await quick.until_text("".join(words))
        slow.may_send.set()
        await slow.until_text("".join(words))
        await in_thread(complete, lease, "".join(words))
        await slow.until_over()
        await quick.until_over()
        return slow

    assert types(serve(conversation)) == ["token"] * 100 + ["completed"]


def test_comments_keep_a_quiet_connection_awake(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_stream, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(task_stream, "_KEEP_ALIVE_SECONDS", 0.02)

    task = new_task()

    async def conversation(handler: PooledHandler) -> None:
        stream = Stream(handler, task.pk)
        await stream.until(lambda: stream.body.count(b": keep-alive\n\n") == 3)
        await stream.disconnect()
        assert stream.body.startswith(b"retry: 1000\n\n")
        assert stream.events == []

    serve(conversation)


def test_stream_ends_cleanly_when_the_server_stops(new_task: NewTask) -> None:
    task = new_task()

    async def conversation(handler: PooledHandler) -> None:
        stream = Stream(handler, task.pk)
        await stream.until(lambda: handler._follower.num_readers == 1)
        stream.serving.cancel()
        assert await stream.until_over() == []
        assert handler._follower.num_readers == 0

    serve(conversation)
