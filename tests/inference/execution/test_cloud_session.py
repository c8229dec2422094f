"""The cloud session: what starts when, how many at once, and what gives its place back."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta

import pytest
from django.utils import timezone
from pytest_django import Settings

from conversations.models import text_of
from inference import dispatch
from inference.errors import ErrorCode, InferenceError, RetryLater
from inference.execution import cloud_session
from inference.execution.cloud_session import CloudSession
from inference.lifecycle import finish, sweep
from inference.models import GenerationTask, Queue, RegisteredModel
from inference.providers.base import GenerationRequest, Progress, Provider
from inference.providers.cloud.endpoints.pool import NONE_MAY, EndpointPool
from monitoring.redis import outbox
from monitoring.redis.client import client
from monitoring.streams.delta_stream import stream_key
from tests.conftest import wait_until
from tests.inference.execution.cloud_sessions import LIMIT_SECONDS
from tests.inference.lifecycle.test_lifecycle import expire, fresh, outcomes

NewTask = Callable[..., GenerationTask]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]

LATER = RetryLater(
    InferenceError("Too many at once.", ErrorCode.RATE_LIMITED, retryable=True), 12.0, 1
)


class HangingProvider(Provider):
    """Notes who asks, says the first word, and the rest once it may; raises what it is to."""

    queue = Queue.API
    failures: list[Exception]
    asked: list[str]
    open: list[str]

    async def generate(
        self, request: GenerationRequest, progress: Progress
    ) -> AsyncGenerator[str, None]:
        word = text_of(request.messages[-1])
        self.asked.append(word)
        if self.failures:
            raise self.failures.pop(0)
        yield f"{word} "
        while word not in self.open:
            await asyncio.sleep(0.005)
        yield "is answered"


@pytest.fixture
def provider(echo: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> HangingProvider:
    hanging = HangingProvider(echo)
    hanging.failures, hanging.asked, hanging.open = [], [], []
    monkeypatch.setattr(cloud_session, "provider_for", lambda _: hanging)
    return hanging


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], "Future[None]"]]:
    """Starts a thread of the worker, as a message does; the session ends with its last task."""
    monkeypatch.setattr(cloud_session, "LINGER_SECONDS", 0)
    futures: list[Future[None]] = []

    def work() -> "Future[None]":
        future: Future[None] = Future()

        def run() -> None:
            try:
                cloud_session.run()
                future.set_result(None)
            except BaseException as error:  # noqa: BLE001 (for the test)
                future.set_exception(error)

        threading.Thread(target=run).start()
        futures.append(future)
        return future

    yield work
    for future in futures:
        future.result(LIMIT_SECONDS)


def test_most_urgent_goes_first_until_nothing_is_due(
    new_task: NewTask, provider: HangingProvider, workers: Callable[[], "Future[None]"]
) -> None:
    priorities = (5, 11, 10.99, 0, 100)
    tasks = [new_task(prompt=str(priority), priority=priority) for priority in priorities]
    provider.open = [str(priority) for priority in priorities]
    workers().result(LIMIT_SECONDS)
    assert provider.asked == ["100", "11", "10.99", "5", "0"]
    assert {fresh(task).status for task in tasks} == {"completed"}


def test_many_wait_at_once_and_an_urgent_one_passes_those_that_wait(
    new_task: NewTask,
    provider: HangingProvider,
    workers: Callable[[], "Future[None]"],
    settings: Settings,
) -> None:
    settings.MAX_CLOUD_CONCURRENCY = 3
    for number in range(4):
        new_task(prompt=f"task {number}")
    workers()
    wait_until(lambda: len(provider.asked) == 3)
    new_task(prompt="urgent", priority=50)
    provider.open.append("task 1")
    wait_until(lambda: len(provider.asked) == 4)
    assert provider.asked[-1] == "urgent"
    provider.open += ["task 0", "task 2", "task 3", "urgent"]


def test_max_concurrency_of_a_model_holds_up_no_other(
    new_task: NewTask,
    echo: RegisteredModel,
    provider: HangingProvider,
    workers: Callable[[], "Future[None]"],
) -> None:
    echo.config = {"max_concurrency": 2}
    echo.save()
    RegisteredModel.objects.create(name="other", provider="echo")
    tasks = [new_task(prompt=f"limited {number}", priority=9) for number in range(4)]
    tasks.append(new_task(model="other", prompt="other"))
    workers()
    wait_until(lambda: "other" in provider.asked)
    assert sorted(provider.asked) == ["limited 0", "limited 1", "other"]
    provider.open += ["other", "limited 0"]
    wait_until(lambda: "limited 2" in provider.asked)
    assert "limited 3" not in provider.asked
    provider.open += ["limited 1", "limited 2", "limited 3"]
    wait_until(lambda: {fresh(task).status for task in tasks} == {"completed"})


def test_endpoints_that_take_more_just_after_they_were_asked_keep_nobody_waiting(
    new_task: NewTask,
    provider: HangingProvider,
    workers: Callable[[], "Future[None]"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cloud_session, "LINGER_SECONDS", LIMIT_SECONDS)
    was_refused = threading.Event()

    async def hear_nothing(_: CloudSession) -> None:
        await asyncio.Event().wait()

    def lowest_priority(_: EndpointPool, num_running: int, num_batch: int) -> float:
        """What is claimed beside another task is refused; a moment later it would not be."""
        if not num_running or threading.current_thread().name == "cloud-session":
            return 0.0
        was_refused.set()
        return NONE_MAY

    monkeypatch.setattr(CloudSession, "_listen", hear_nothing)
    monkeypatch.setattr(EndpointPool, "lowest_priority", lowest_priority)
    for name in ("first", "second"):
        new_task(prompt=name)
    workers()
    wait_until(was_refused.is_set)
    wait_until(lambda: provider.asked)
    assert provider.asked == ["first"]
    provider.open = ["first", "second"]
    wait_until(lambda: provider.asked == ["first", "second"])
    monkeypatch.setattr(cloud_session, "LINGER_SECONDS", 0)
    cloud_session.running_session().look_again()


def test_retry_that_has_to_wait_gives_its_place_back(
    new_task: NewTask, provider: HangingProvider, workers: Callable[[], "Future[None]"]
) -> None:
    provider.failures = [LATER]
    late, other = new_task(prompt="late", deadline_seconds=5), new_task(prompt="other")
    provider.open = ["late", "other"]
    before = timezone.now()
    workers().result(LIMIT_SECONDS)
    assert fresh(other).status == "completed"
    row = fresh(late)
    assert (row.status, row.worker, outcomes(late)) == ("pending", "", ["failed"])
    assert row.due_at is not None
    assert timedelta(seconds=11) < row.due_at - before < timedelta(seconds=20)
    GenerationTask.objects.filter(pk=late.pk).update(due_at=before, deadline_at=before)
    sweep.sweep()  # the deadline was for its start
    assert fresh(late).status == "failed" if row.deadline_at else "pending"
    assert row.deadline_at is None


def test_it_starts_again_when_it_is_due(
    new_task: NewTask, provider: HangingProvider, workers: Callable[[], "Future[None]"]
) -> None:
    provider.failures = [RetryLater(LATER.failure, 0.2, 1)]
    task = new_task(prompt="late")
    provider.open = ["late"]
    workers().result(LIMIT_SECONDS)
    client().delete(*client().keys("api*") or ["none"])

    def is_enqueued() -> bool:
        outbox.flush()
        return bool(client().keys("api*"))

    wait_until(is_enqueued)
    workers().result(LIMIT_SECONDS)
    row = fresh(task)
    assert (row.status, row.attempt, outcomes(task)) == ("completed", 2, ["failed", "completed"])


def test_cancel_ends_one_that_waits_to_be_asked_again(
    new_task: NewTask, provider: HangingProvider, workers: Callable[[], "Future[None]"]
) -> None:
    provider.failures = [LATER]
    task = new_task()
    workers().result(LIMIT_SECONDS)
    assert finish.cancel(fresh(task))
    assert fresh(task).status == "cancelled"


def test_cancel_ends_a_silent_call_at_once(
    new_task: NewTask, provider: HangingProvider, workers: Callable[[], "Future[None]"]
) -> None:
    task = new_task(prompt="hanging")
    workers()
    wait_until(lambda: client().xlen(stream_key(task.pk)))
    finish.cancel(fresh(task))
    wait_until(lambda: fresh(task).status == "cancelled")
    result = fresh(task).result
    assert result is not None
    assert result["text"] == "hanging "


def test_silent_call_ends_at_its_time_limit(
    new_task: NewTask, provider: HangingProvider, workers: Callable[[], "Future[None]"]
) -> None:
    task = new_task(prompt="hanging", timeout_seconds=1)
    started = time.monotonic()
    workers().result(LIMIT_SECONDS)
    assert time.monotonic() - started >= 1
    assert (fresh(task).status, fresh(task).error_code) == ("failed", "timeout")


def test_lost_lease_ends_the_call_without_a_trace(
    new_task: NewTask, provider: HangingProvider, workers: Callable[[], "Future[None]"]
) -> None:
    task = new_task(prompt="hanging")
    working = workers()
    wait_until(lambda: client().xlen(stream_key(task.pk)))
    expire(task)
    sweep.sweep()
    provider.open = ["hanging"]
    working.result(LIMIT_SECONDS)
    assert outcomes(task)[0] == "lost"


def test_running_session_hears_of_tasks_without_messages(
    new_task: NewTask, provider: HangingProvider, workers: Callable[[], "Future[None]"]
) -> None:
    first, second = new_task(prompt="first"), new_task(prompt="second")
    GenerationTask.objects.filter(pk=second.pk).update(status="cancelled")
    workers()
    wait_until(lambda: provider.asked == ["first"])
    GenerationTask.objects.filter(pk=second.pk).update(status="pending")
    wait_until(lambda: bool(client().pubsub_numsub(dispatch.CLOUD_NEWS_CHANNEL)[0][1]))
    outbox.flush()
    num_messages = dispatch.waiting_messages(Queue.API)
    assert dispatch.enqueue(dispatch.generate([second]))
    wait_until(lambda: provider.asked == ["first", "second"])
    assert dispatch.waiting_messages(Queue.API) == num_messages
    provider.open = ["first", "second"]
    wait_until(lambda: {fresh(each).status for each in (first, second)} == {"completed"})


def test_sweep_sends_messages_though_a_session_hears(
    new_task: NewTask, provider: HangingProvider, workers: Callable[[], "Future[None]"]
) -> None:
    first, second = new_task(prompt="first"), new_task(prompt="second")
    GenerationTask.objects.filter(pk=second.pk).update(status="cancelled")
    workers()
    wait_until(lambda: bool(client().pubsub_numsub(dispatch.CLOUD_NEWS_CHANNEL)[0][1]))
    outbox.flush()
    client().delete(*client().keys("api*") or ["none"])
    GenerationTask.objects.filter(pk=second.pk).update(status="pending", enqueued_at=None)
    sweep.sweep()
    assert dispatch.waiting_messages(Queue.API) == 1
    provider.open = ["first", "second"]
    workers().result(LIMIT_SECONDS)
    wait_until(lambda: {fresh(each).status for each in (first, second)} == {"completed"})


def test_session_without_room_hands_on_and_takes_no_more_messages(
    new_task: NewTask,
    provider: HangingProvider,
    workers: Callable[[], "Future[None]"],
    settings: Settings,
) -> None:
    settings.MAX_CLOUD_CONCURRENCY = 1
    new_task(prompt="running")
    new_task(prompt="waiting")
    workers()
    wait_until(lambda: provider.asked == ["running"])
    waiting = workers()
    wait_until(lambda: bool(dispatch.waiting_messages(Queue.API)))
    assert not waiting.done()
    provider.open = ["running", "waiting"]
    waiting.result(LIMIT_SECONDS)


def test_worker_that_is_to_stop_hears_of_no_more_tasks(
    new_task: NewTask,
    provider: HangingProvider,
    workers: Callable[[], "Future[None]"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cloud_session, "_draining", threading.Event())

    def num_hearing() -> int:
        found: int = client().pubsub_numsub(dispatch.CLOUD_NEWS_CHANNEL)[0][1]
        return found

    task = new_task(prompt="running")
    working = workers()
    wait_until(lambda: provider.asked == ["running"] and bool(num_hearing()))
    cloud_session.drain()
    wait_until(lambda: not num_hearing())
    left = new_task(prompt="left to others")
    assert not working.done()
    provider.open = ["running"]
    working.result(LIMIT_SECONDS)
    assert (fresh(task).status, fresh(left).status) == ("completed", "pending")
