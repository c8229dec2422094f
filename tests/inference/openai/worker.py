"""A stand-in for the worker: claims the tasks of a request and ends them as a test says."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx

from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import claim, finish
from inference.models import GenerationTask
from monitoring.streams.delta_stream import DeltaWriter
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer
from tests.sopllm.test_handler import talk

End = Callable[[GenerationTask], None]


def completing(text: str = "an answer", finish_reason: str = "stop") -> End:
    """Streams the words of a text, and completes with it."""

    def end(task: GenerationTask) -> None:
        lease = claim.claim(task.pk)
        assert lease is not None
        writer = DeltaWriter(task.pk, lease.attempt)
        for delta in re.findall(" ?[^ ]+", text):
            writer.write(delta)
            writer.flush()
        finish.complete(lease, answer(text, finish_reason), TIMINGS)

    return end


def failing(code: ErrorCode, message: str = "It went wrong.", text: str = "") -> End:
    """Streams the text, and fails."""

    def end(task: GenerationTask) -> None:
        lease = claim.claim(task.pk)
        assert lease is not None
        if text:
            writer = DeltaWriter(task.pk, lease.attempt)
            writer.write(text)
            writer.flush()
        result = answer(text, "error") if text else None
        finish.fail(lease, InferenceError(message, code), result, TIMINGS)

    return end


def ask(path: str, body: Any, *ends: End, **headers: str) -> httpx.Response:
    """The response to a request, each of whose tasks ends so, in the order of submission."""

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        request = client.post(path, json=body, headers=headers)
        response, _ = await asyncio.gather(request, _work(ends))
        return response

    response: httpx.Response = talk(conversation)
    return response


async def _work(ends: tuple[End, ...]) -> None:
    while len(tasks := await asyncio.to_thread(_pending)) < len(ends):
        await asyncio.sleep(0.01)
    for task, end in zip(tasks, ends, strict=True):
        await asyncio.to_thread(end, task)


def _pending() -> list[GenerationTask]:
    return list(GenerationTask.objects.pending().order_by("created_at"))
