"""The deferred responses of /v1: an answer when its tasks have ended, or a stream of it."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from django.http import HttpResponse, JsonResponse
from rest_framework.exceptions import APIException

from inference.api.deferred_response import DeferredResponse, InThread, LongPoll
from inference.api.sse_cursor import SSEWriter
from inference.api.task_stream import CONTENT_TYPE, HEADERS, TaskReading, kept_alive
from inference.models import GenerationTask
from inference.openai.errors import TaskNotCompleted, task_ids
from inference.openai.tasks import cancel, is_answered
from monitoring.streams.follower import Follower


class AnswerAtEnd(LongPoll):
    """Answers when all tasks are answered, or the first one has failed.

    Its tasks are cancelled when the client goes away, or there is nothing to wait for any more.
    """

    def __init__(
        self,
        tasks: Sequence[GenerationTask],
        body: Callable[[Sequence[GenerationTask]], Any],
        is_answer: Callable[[GenerationTask], bool] = is_answered,
    ) -> None:
        """`is_answer`: whether an ended task has one."""
        super().__init__([task.pk for task in tasks], math.inf, self._find_answer)
        self._tasks = tasks
        self._body = body
        self._is_answer = is_answer
        for name, value in task_ids(tasks).items():
            self[name] = value

    def _find_answer(self, is_last: bool) -> HttpResponse | None:
        if is_last:  # the client is gone
            cancel(self._tasks)
            return HttpResponse()
        rows = [GenerationTask.objects.read(task.pk) for task in self._tasks]
        for task in rows:
            if task is None or (task.has_ended and not self._is_answer(task)):
                cancel(self._tasks)
                raise TaskNotCompleted(task, self._tasks)
        ended = [task for task in rows if task and task.has_ended]
        return JsonResponse(self._body(ended)) if len(ended) == len(rows) else None


class TextStream(DeferredResponse):
    """Server-Sent Events of all tasks as they come, each written by its own writer.

    The status is sent with the first event: a task that fails before is answered with the status of
    its error, and one that fails later by an event. Its tasks are cancelled when the client goes
    away, or one of them has failed.
    """

    def __init__(
        self,
        tasks: Sequence[GenerationTask],
        writers: Sequence[SSEWriter],
        ending: Callable[[Sequence[GenerationTask]], bytes],
        error_event: Callable[[APIException], bytes],
        *,
        is_answer: Callable[[GenerationTask], bool] = is_answered,
        is_kept: bool = False,
        is_new: bool = True,
    ) -> None:
        """`ending`: what follows the events of tasks that are all answered.

        `is_answer`: whether an ended task has one. `is_kept`: the tasks go on when the client goes
        away. `is_new`: they were submitted for this stream, so that nobody knows of them if it is
        refused.
        """
        super().__init__(content_type=CONTENT_TYPE, headers=HEADERS | task_ids(tasks))
        self._tasks = tasks
        self._readings = [TaskReading(*each) for each in zip(tasks, writers, strict=True)]
        self._ending = ending
        self._error_event = error_event
        self._is_answer = is_answer
        self._is_kept = is_kept
        self._is_new = is_new

    def refuse(self) -> None:
        if self._is_new:
            cancel(self._tasks)

    async def parts(self, follower: Follower, in_thread: InThread) -> AsyncGenerator[bytes, None]:
        """Bytes of whole events."""
        has_begun = False
        try:
            choices = [self._events(each, follower, in_thread) for each in self._readings]
            events = choices[0] if len(choices) == 1 else merged(choices)
            async with aclosing(kept_alive(events)) as parts:
                async for part in parts:
                    has_begun = True
                    yield part
            yield self._ending([reading.task for reading in self._readings])
        except APIException as error:
            if not has_begun and self._is_new:
                raise
            yield self._error_event(error)
        finally:
            has_ended = all(reading.task.has_ended for reading in self._readings)
            if not has_ended and not self._is_kept:
                await in_thread(cancel, self._tasks)

    async def _events(
        self, reading: TaskReading, follower: Follower, in_thread: InThread
    ) -> AsyncGenerator[bytes, None]:
        """Those of one task. Raises TaskNotCompleted."""
        yield reading.begin()
        async with aclosing(reading.events(follower, in_thread)) as events:
            async for event in events:
                yield event
        if not self._is_answer(reading.task):
            task = reading.task if reading.task.has_ended else None
            raise TaskNotCompleted(task, self._tasks)


async def merged(streams: Sequence[AsyncGenerator[bytes, None]]) -> AsyncGenerator[bytes, None]:
    """The parts of all streams as they come; an error of one ends them all."""
    nexts = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
    try:
        while nexts:
            done, _ = await asyncio.wait(nexts, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                stream = nexts.pop(each)
                try:
                    part = each.result()
                except StopAsyncIteration:
                    continue
                nexts[asyncio.ensure_future(anext(stream))] = stream
                yield part
    finally:
        for each in nexts:
            each.cancel()
        await asyncio.gather(*nexts, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
