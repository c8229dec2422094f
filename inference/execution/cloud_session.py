"""The cloud session of an api worker: hundreds of attempts in flight on one event loop.

The loop reads what providers send and never blocks: what asks the database or Redis runs in a few
threads. Tasks are claimed most urgent first, up to MAX_CLOUD_CONCURRENCY at a time. A message
starts the session, which then hears of new tasks from Redis itself, until none has come for a time.
"""

import asyncio
import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial

import redis
import uvloop
from django.conf import settings
from django.db import Error as DatabaseError

from inference import dispatch
from inference.errors import RetryLater
from inference.execution.attempt import Attempt
from inference.lifecycle import budget, claim, lease_renewer
from inference.lifecycle.claim import Lease
from inference.models import GenerationTask, Queue, RegisteredModel
from inference.providers.base import GenerationRequest, StartOver
from inference.providers.cloud.endpoints import reports
from inference.providers.cloud.endpoints.pool import EndpointPool, is_batch
from inference.providers.cloud.endpoints.pools import on_room, pool_of
from inference.providers.registry import provider_for
from monitoring.database_threads import DatabaseThreads
from monitoring.redis.client import async_client, cancel
from monitoring.redis.per_process import PerProcess
from monitoring.streams import delta_stream

logger = logging.getLogger(__name__)

# How often deltas go out, and cancels, time limits and lost leases are looked for.
_TICK_SECONDS = 0.05
_NUM_DATABASE_THREADS = 8
# LiteLLM prepares each call in a thread; some providers fetch a token there.
_NUM_LIBRARY_THREADS = 16
# A task that is put back is enqueued when it is due by the database's clock too.
_LATE_SECONDS = 0.05
# So many are claimed before the first of them is begun.
_MAX_CLAIMS = 8
# The session stays for so long after its last task: to start one takes a message.
LINGER_SECONDS = 60.0
# Whoever told of a task while the session left has been heard by then.
_LEAVE_SECONDS = 0.05
_LOOK_AGAIN_SECONDS = 1.0

_draining = threading.Event()


def drain() -> None:
    """Start nothing new: the worker of this process is to stop."""
    _draining.set()
    if running_session.is_made:
        session = running_session()
        session.loop.call_soon_threadsafe(session.look_again)


def run() -> None:
    """Answer due tasks, most urgent first, until none has come for some time.

    While the session of this process runs, have it look again.
    """
    session = running_session()
    asyncio.run_coroutine_threadsafe(session.run(), session.loop).result()


@PerProcess
def running_session() -> "CloudSession":
    """The session of this process; its loop runs in a thread of its own."""
    session = CloudSession()
    on_room(session.look_again)
    threading.Thread(target=session.loop.run_forever, name="cloud-session", daemon=True).start()
    return session


@dataclass(frozen=True, slots=True)
class _Begun:
    """A claimed task, and who is asked what; None where that has failed already."""

    attempt: Attempt
    asked: tuple[RegisteredModel, GenerationRequest] | None

    @property
    def model_name(self) -> str:
        return self.attempt.lease.task.model_name

    @property
    def is_batch(self) -> bool:
        return is_batch(self.attempt.lease.task.priority)


class CloudSession:
    """The attempts in flight, each a coroutine that follows its provider's generator."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(_NUM_LIBRARY_THREADS, "provider"))
        self.loop.set_exception_handler(_tell_of_lost_exception)
        self._threads = DatabaseThreads(_NUM_DATABASE_THREADS, "cloud-database")
        self._is_running = False
        self._is_look_due = False
        self._woken = asyncio.Event()
        self._has_room = asyncio.Event()
        self._handed_on_at = float("-inf")
        self._answers: set[asyncio.Task[None]] = set()
        # Whether due tasks may wait for the end of others.
        self._holds_up = False
        # By model name: its endpoints, and the attempts in flight, all and those of batch work.
        self._pools: dict[str, EndpointPool] = {}
        self._num_running: Counter[str] = Counter()
        self._num_batch_running: Counter[str] = Counter()
        self._generations: dict[Attempt, asyncio.Task[None]] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._first_delta = asyncio.Event()
        self._exchanging = asyncio.Lock()
        self._exchange: asyncio.Task[None] | None = None

    def look_again(self) -> None:
        """A task may be due, or none may start any more."""
        self._is_look_due = True
        self._woken.set()

    async def run(self) -> None:
        """Claim and answer tasks, until none has come for LINGER_SECONDS.

        Of several calls the first one does; the others return when there is room for a task.
        """
        due = GenerationTask.objects.due().filter(queue=Queue.API)
        while not self._is_running:
            self._is_running = True
            self._has_room.set()
            listening = asyncio.create_task(self._listen())
            publishing = asyncio.create_task(self._publish_endpoints())
            try:
                await self._serve(listening)
            finally:
                self._is_running = False
                self._has_room.set()
                await cancel(listening)
                await cancel(publishing)
            await asyncio.sleep(_LEAVE_SECONDS)
            if _draining.is_set() or not await self._threads.run(due.exists):
                return
        self.look_again()
        if not self._has_room.is_set():
            # Until then this worker takes no further message, so another one gets this.
            await self._hand_on()
            await self._has_room.wait()

    async def _serve(self, listening: asyncio.Task[None]) -> None:
        self._is_look_due = True
        while not (_draining.is_set() and not self._answers):
            self._woken.clear()
            if _draining.is_set():
                await cancel(listening)  # what comes now is for others to hear
            if self._is_look_due and not _draining.is_set():
                self._is_look_due = False
                try:
                    await self._fill()
                except DatabaseError as exc:
                    if not self._answers:
                        raise
                    logger.warning("Claimed nothing, the database does not answer: %s", exc)
                    self.loop.call_later(_LOOK_AGAIN_SECONDS, self.look_again)
            try:
                seconds = None if self._answers else LINGER_SECONDS
                await asyncio.wait_for(self._woken.wait(), seconds)
            except TimeoutError:
                return

    async def _fill(self) -> None:
        """Claim what is due, most urgent first, while there is room."""
        begun: list[_Begun] = []
        most, is_closed = 0, True
        # Room that is made meanwhile may come too late for the look at it.
        self._holds_up = True
        for pool in self._pools.values():
            pool.keep_watch()
        while len(begun) == most:
            room = settings.MAX_CLOUD_CONCURRENCY - len(self._answers)
            # The first one does not wait for a look whether there are more.
            most = min(room, _MAX_CLAIMS if begun else 1)
            if not most:
                self._has_room.clear()
                if self.loop.time() > self._handed_on_at + _LOOK_AGAIN_SECONDS:
                    await self._hand_on()
                return
            self._has_room.set()
            begun, is_closed = await self._threads.run(self._begin_next, most)
            for each in begun:
                self._num_running[each.model_name] += 1
                self._num_batch_running[each.model_name] += each.is_batch
                answer = asyncio.create_task(self._answer(each))
                self._answers.add(answer)
                answer.add_done_callback(partial(self._has_answered, each))
        self._holds_up = is_closed

    def _has_answered(self, begun: _Begun, answer: asyncio.Task[None]) -> None:
        self._answers.discard(answer)
        self._num_running[begun.model_name] -= 1
        self._num_batch_running[begun.model_name] -= begun.is_batch
        if error := answer.exception():
            logger.error("Task %s: its end was not stored", begun.attempt.task_id, exc_info=error)
        if self._holds_up:
            self.look_again()
        elif not self._answers:
            self._woken.set()

    async def _hand_on(self) -> None:
        """Wake another worker."""
        self._handed_on_at = self.loop.time()
        enqueue = partial(dispatch.enqueue, [dispatch.ANSWER_CLOUD_TASKS], is_heard=False)
        await self._threads.run(enqueue)

    async def _listen(self) -> None:
        """Look again whenever a process tells of new tasks; without Redis, now and then."""
        redis_client = async_client()
        try:
            while True:
                try:
                    async with redis_client.pubsub() as news:
                        await news.subscribe(dispatch.CLOUD_NEWS_CHANNEL)
                        async for _ in news.listen():
                            self.look_again()
                except (redis.RedisError, OSError) as exc:
                    logger.warning("No news of tasks, Redis is unreachable: %s", exc)
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
                self.look_again()
        finally:
            await redis_client.aclose()

    async def execute(self, lease: Lease) -> None:
        """Answer a claimed task."""
        await self._answer(await self._threads.run(self._begin, lease))

    async def _publish_endpoints(self) -> None:
        """Tell other processes how the endpoints are, while the session runs."""
        while True:
            await self._threads.run(reports.publish)
            await asyncio.sleep(reports.INTERVAL_SECONDS)

    def _lowest_priorities(
        self, num_running: Counter[str], num_batch_running: Counter[str]
    ) -> dict[str, float]:
        """By the models whose endpoints do not take any task: the priority that one must have."""
        lowest = {
            name: pool.lowest_priority(num_running[name], num_batch_running[name])
            for name, pool in self._pools.items()
        }
        return {name: priority for name, priority in lowest.items() if priority > 0}

    def _begin_next(self, most: int) -> tuple[list[_Begun], bool]:
        """Claim up to so many tasks; what fails after the first one is for the next call.

        Returns them, and whether endpoints would not have taken any other one.
        """
        begun: list[_Begun] = []
        is_closed = False
        num_running, num_batch = self._num_running.copy(), self._num_batch_running.copy()
        try:
            while len(begun) < most:
                lowest = self._lowest_priorities(num_running, num_batch)
                is_closed = bool(lowest)
                lease = claim.claim_most_urgent(Queue.API, lowest)
                if lease is None:
                    break
                begun.append(self._begin(lease))
                num_running[begun[-1].model_name] += 1
                num_batch[begun[-1].model_name] += begun[-1].is_batch
        except DatabaseError:
            if not begun:
                raise
        return begun, is_closed

    def _begin(self, lease: Lease) -> _Begun:
        attempt = Attempt(lease)
        try:
            model, request = attempt.read_model(), attempt.read_request()
        except Exception as error:  # noqa: BLE001 (stored as the task's failure)
            attempt.fail(error)
            return _Begun(attempt, None)
        self._pools[model.name] = pool_of(model)
        return _Begun(attempt, (model, request))

    async def _answer(self, begun: _Begun) -> None:
        """Generate, then store the end. A lost lease ends it without a trace."""
        if begun.asked is None:
            return
        attempt = begun.attempt
        generation = asyncio.ensure_future(self._generate(attempt, *begun.asked))
        self._generations[attempt] = generation
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.ensure_future(self._tick())
        await asyncio.wait([generation])
        del self._generations[attempt]
        async with self._exchanging:
            pass  # from now on the attempt alone sends its deltas
        cancelled = asyncio.CancelledError() if generation.cancelled() else None
        failure = cancelled or generation.exception()
        if attempt.must_stop:
            end = attempt.stop
        elif failure is None:
            end = attempt.complete
        elif isinstance(failure, RetryLater):
            end = partial(attempt.put_back, failure)
            wake = partial(dispatch.enqueue_soon, dispatch.generate([attempt.lease.task]))
            self.loop.call_later(failure.seconds + _LATE_SECONDS, wake)
        else:
            end = partial(attempt.fail, failure)
        try:
            await self._threads.run(end)
        finally:
            lease_renewer.release(attempt.lease)

    async def _generate(
        self, attempt: Attempt, model: RegisteredModel, request: GenerationRequest
    ) -> None:
        provider = provider_for(model)
        if attempt.lease.task.max_usd_per_month is not None:
            at_most = await asyncio.to_thread(provider.cost_at_most, request)
            if at_most != 0:
                await self._threads.run(budget.reserve, attempt.lease, at_most)
        async with aclosing(provider.generate(request, attempt.progress)) as deltas:
            async for delta in deltas:
                if isinstance(delta, StartOver):
                    await self._threads.run(attempt.start_over, delta.failure)
                else:
                    attempt.take(delta)
                    if attempt.deltas.is_first_due:
                        self._first_delta.set()
                if attempt.must_stop:
                    return

    async def _tick(self) -> None:
        """While attempts are in flight: cancel those that must stop, and show how far they are."""
        while self._generations:
            for attempt, generation in self._generations.items():
                if attempt.must_stop and not generation.cancelling():
                    generation.cancel()
                attempt.publish_progress_if_due()
            # Those that have ended send their own. A slow Redis must not hold up cancels.
            going_on = [each for each, task in self._generations.items() if not task.done()]
            unsent = [each for each in going_on if each.deltas.has_unsent]
            if unsent and not self._exchanging.locked():
                self._exchange = asyncio.ensure_future(self._send_deltas(unsent))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._first_delta.wait(), _TICK_SECONDS)
            self._first_delta.clear()

    async def _send_deltas(self, attempts: list[Attempt]) -> None:
        """Those of all that go on, in one round trip."""
        async with self._exchanging:
            writers = [each.deltas for each in attempts if each in self._generations]
            pipe = delta_stream.pipeline(writers)
            if await self._threads.run(delta_stream.execute, pipe) is not None:
                for writer in writers:
                    writer.confirm()
        if any(each.deltas.is_first_due for each in self._generations):
            self._first_delta.set()  # it came meanwhile


def _tell_of_lost_exception(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Without its text, which may quote a request."""
    exception = context.get("exception")
    logger.warning("The cloud session left something behind: %s", type(exception).__name__)
