"""The cloud session of an api worker: hundreds of attempts in flight on one event loop.

The loop reads what providers send and never blocks: what asks the database or Redis runs in a few
threads. Tasks are claimed most urgent first. The worker's own threads, MAX_CLOUD_CONCURRENCY of
them, only wait: each for one attempt after the other, until no task may start any more.
"""

import asyncio
import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial

import uvloop

from inference import dispatch
from inference.errors import RetryLater
from inference.execution.attempt import Attempt
from inference.lifecycle import budget, claim, lease_renewer
from inference.lifecycle.claim import Lease
from inference.models import Queue, RegisteredModel
from inference.providers.base import GenerationRequest, StartOver
from inference.providers.registry import provider_for
from monitoring.database_threads import DatabaseThreads
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

_draining = threading.Event()


def drain() -> None:
    """Start nothing new: the worker of this process is to stop."""
    _draining.set()


def run() -> None:
    """Answer due tasks, most urgent first, until none may start."""
    session = running_session()
    asyncio.run_coroutine_threadsafe(session.run(), session.loop).result()


@PerProcess
def running_session() -> "CloudSession":
    """The session of this process; its loop runs in a thread of its own."""
    session = CloudSession()
    threading.Thread(target=session.loop.run_forever, name="cloud-session", daemon=True).start()
    return session


@dataclass(frozen=True, slots=True)
class _Begun:
    """A claimed task, and who is asked what; None where that has failed already."""

    attempt: Attempt
    asked: tuple[RegisteredModel, GenerationRequest] | None


class CloudSession:
    """The attempts in flight, each a coroutine that follows its provider's generator."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(_NUM_LIBRARY_THREADS, "provider"))
        self.loop.set_exception_handler(_tell_of_lost_exception)
        self._threads = DatabaseThreads(_NUM_DATABASE_THREADS, "cloud-database")
        self._claiming = asyncio.Lock()
        # By model name: attempts in flight, and how many there may be, where that is limited.
        self._num_running: Counter[str] = Counter()
        self._limits: dict[str, int] = {}
        self._generations: dict[Attempt, asyncio.Task[None]] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._first_delta = asyncio.Event()
        self._exchanging = asyncio.Lock()
        self._exchange: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Claim and answer one task after the other, until none may start."""
        while not _draining.is_set():
            async with self._claiming:
                full = [
                    name for name, most in self._limits.items() if self._num_running[name] >= most
                ]
                begun = await self._threads.run(self._begin_next, full)
                if begun is None:
                    return
                model_name = begun.attempt.lease.task.model_name
                self._num_running[model_name] += 1
            try:
                await self._answer(begun)
            finally:
                self._num_running[model_name] -= 1

    async def execute(self, lease: Lease) -> None:
        """Answer a claimed task."""
        await self._answer(await self._threads.run(self._begin, lease))

    def _begin_next(self, full: list[str]) -> _Begun | None:
        lease = claim.claim_most_urgent(Queue.API, except_models=full)
        return self._begin(lease) if lease else None

    def _begin(self, lease: Lease) -> _Begun:
        attempt = Attempt(lease)
        try:
            model, request = attempt.read_model(), attempt.read_request()
        except Exception as error:  # noqa: BLE001 (stored as the task's failure)
            attempt.fail(error)
            return _Begun(attempt, None)
        if (limit := model.config.get("max_concurrency")) is not None:
            self._limits[model.name] = limit
        else:
            self._limits.pop(model.name, None)
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
