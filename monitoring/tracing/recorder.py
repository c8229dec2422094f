"""A thread a process that sends generations to Langfuse, so that a task never waits for it.

While Langfuse is away, the latest generations are kept and sent once it is back.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache

from django.conf import settings

from monitoring.redis.per_process import PerProcess
from monitoring.tracing.generation import Generation
from monitoring.tracing.sender import MAX_BATCH, RefusedError, Sender, UnreachableError
from monitoring.tracing.trace_ids import is_configured

logger = logging.getLogger(__name__)

MAX_KEPT = 1000

# About as many bytes; a batch and what is kept are bounded by them too.
_MAX_BATCH_CHARACTERS = 1_000_000
_MAX_KEPT_CHARACTERS = 16_000_000
_GATHER_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 30.0
_WARN_AGAIN_SECONDS = 60.0
FLUSH_SECONDS = 1.5

# A fork waits until the SDK is imported, made or at work: it has locks that a child would inherit
# as they are, and nobody would open them there.
_sdk_at_work = threading.Lock()
os.register_at_fork(
    before=_sdk_at_work.acquire,
    after_in_parent=_sdk_at_work.release,
    after_in_child=_sdk_at_work.release,
)


def record(generation: Generation) -> None:
    """Have a generation sent within about a second, or once Langfuse is back."""
    if is_configured():
        _recorder().put(generation)


def flush(timeout_seconds: float = FLUSH_SECONDS) -> None:
    """Wait until all that was recorded here is sent, or was tried, or the time is over."""
    if is_configured():
        _recorder().flush(timeout_seconds)


@PerProcess
def _recorder() -> "Recorder":
    return Recorder(_langfuse)


@cache
def _langfuse() -> Sender:
    """One for all forks of a process: the SDK keeps one client, which it makes anew in a child."""
    # Takes a second to import, which only this thread waits for; a web process never does.
    from monitoring.tracing.langfuse_sender import LangfuseSender

    return LangfuseSender(
        settings.LANGFUSE_HOST, settings.LANGFUSE_PUBLIC_KEY, settings.LANGFUSE_SECRET_KEY
    )


class Recorder:
    """Keeps the latest generations until they are sent; `make_sender` is called in its thread."""

    def __init__(self, make_sender: Callable[[], Sender]) -> None:
        self._make_sender = make_sender
        self._changed = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._num_characters = 0
        self._num_dropped = 0
        self._flushes: list[threading.Event] = []
        self._num_failures = 0
        self._warned_at = float("-inf")
        threading.Thread(target=self._run, name="traces", daemon=True).start()

    def put(self, generation: Generation) -> None:
        with self._changed:
            self._waiting.append(generation)
            self._num_characters += generation.num_characters
            self._drop_oldest()
            self._changed.notify()

    def flush(self, timeout_seconds: float) -> None:
        flushed = threading.Event()
        with self._changed:
            self._flushes.append(flushed)
            self._changed.notify()
        flushed.wait(timeout_seconds)

    def _run(self) -> None:
        while True:
            flushes = self._wait()
            try:
                self._send_all()
            except Exception:
                # The thread must live on; after a pause, or its log would be full of this.
                logger.exception("A batch of traces was lost")
                self._num_failures += 1
            for flushed in flushes:
                flushed.set()

    def _wait(self) -> list[threading.Event]:
        """Wait for a first generation and more to go out with it, or until it is time to try again.

        Returns those who wait for it, and for whom it goes on at once.
        """
        with self._changed:
            if not self._num_failures:
                self._changed.wait_for(lambda: self._waiting or self._flushes)
            self._changed.wait_for(lambda: self._flushes, self._pause_seconds())
            flushes, self._flushes = self._flushes, []
            return flushes

    def _pause_seconds(self) -> float:
        if not self._num_failures:
            return _GATHER_SECONDS
        return min(2.0 ** (self._num_failures - 1), _MAX_PAUSE_SECONDS)

    def _send_all(self) -> None:
        """Send batch after batch; while Langfuse is away, the first one alone is tried."""
        while batch := self._take():
            try:
                with _sdk_at_work:
                    sender = self._make_sender()
                    sender.prepare(batch)
                sender.send()
            except UnreachableError as exc:
                self._put_back(batch)
                self._note_failure(exc)
                return
            except RefusedError as exc:
                logger.warning("%d traces were dropped: %s", len(batch), exc)
            self._note_success()

    def _take(self) -> list[Generation]:
        """The oldest, as many as go out together; at least one, if there is any."""
        batch: list[Generation] = []
        num_characters = 0
        with self._changed:
            while self._waiting and len(batch) < MAX_BATCH:
                num_characters += self._waiting[0].num_characters
                if batch and num_characters > _MAX_BATCH_CHARACTERS:
                    break
                batch.append(self._pop_oldest())
        return batch

    def _put_back(self, batch: list[Generation]) -> None:
        with self._changed:
            self._waiting.extendleft(reversed(batch))
            self._num_characters += sum(each.num_characters for each in batch)
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        while len(self._waiting) > MAX_KEPT or (
            self._num_characters > _MAX_KEPT_CHARACTERS and len(self._waiting) > 1
        ):
            self._pop_oldest()
            self._num_dropped += 1

    def _pop_oldest(self) -> Generation:
        oldest = self._waiting.popleft()
        self._num_characters -= oldest.num_characters
        return oldest

    def _note_failure(self, error: UnreachableError) -> None:
        if not self._num_failures:
            logger.warning(
                "Traces are kept back, the latest %d of this process: %s", MAX_KEPT, error
            )
        self._num_failures += 1

    def _note_success(self) -> None:
        was_away, self._num_failures = bool(self._num_failures), 0
        now = time.monotonic()
        if was_away or (self._num_dropped and now - self._warned_at > _WARN_AGAIN_SECONDS):
            with self._changed:
                num_dropped, self._num_dropped = self._num_dropped, 0
            self._warned_at = now
            reason = "is back" if was_away else "takes them too slowly"
            logger.warning("Langfuse %s: %d traces were dropped", reason, num_dropped)
