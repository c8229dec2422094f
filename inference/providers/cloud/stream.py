"""Answers that come through LiteLLM: received on one event loop, taken by the threads in want."""

import asyncio
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import uvloop

from inference.providers.cloud.library import library

logger = logging.getLogger(__name__)

# LiteLLM prepares each call in a thread; some providers fetch a token there.
_NUM_THREADS = 16

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_loop_pid = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What one piece of an answer adds; tool calls, usage and such as LiteLLM shapes them."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[Any, ...] = ()
    logprobs: tuple[Any, ...] = ()
    finish_reason: str | None = None
    usage: Any = None


@dataclass(frozen=True, slots=True)
class _End:
    failure: Exception | None = None


class LiteLLMStream:
    """One call, from `litellm.acompletion(**arguments)` to its last chunk."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Asks at once; the first one of a process waits until LiteLLM is loaded."""
        library()
        self._arrived: queue.SimpleQueue[Delta | _End] = queue.SimpleQueue()
        self._end: _End | None = None
        self._call = asyncio.run_coroutine_threadsafe(self._receive(arguments), _running_loop())

    def take(self, seconds: float) -> list[Delta] | None:
        """What has come since the last time, as soon as there is something; None after the end.

        An empty list when nothing came for so many seconds. Raises what LiteLLM has raised.
        """
        deltas: list[Delta] = []
        with suppress(queue.Empty):
            while self._end is None:
                arrived = self._arrived.get(timeout=0 if deltas else seconds)
                if isinstance(arrived, _End):
                    self._end = arrived
                else:
                    deltas.append(arrived)
        if deltas or self._end is None:
            return deltas
        if self._end.failure is not None:
            raise self._end.failure
        return None

    def close(self) -> None:
        """Hang up, unless the answer is complete. Can be called twice."""
        self._call.cancel()

    async def _receive(self, arguments: dict[str, Any]) -> None:
        stream = None
        try:
            stream = await library().acompletion(**arguments)
            async for delta in _deltas(stream):
                self._arrived.put(delta)
            self._arrived.put(_End())
        except Exception as exc:  # noqa: BLE001 (told to the thread that waits)
            self._arrived.put(_End(exc))
        finally:
            if stream is not None:
                await stream.aclose()


async def _deltas(stream: Any) -> AsyncIterator[Delta]:
    """The pieces of an answer, with its end and its usage where the provider tells them.

    LiteLLM's own wrapper makes up both, a reason to end and a usage, when they are missing; and it
    takes longer than all the rest. So streams of OpenAI's shape are read without it.
    """
    received: Any = stream.completion_stream
    if isinstance(received, _streams_of_openais_shape()):
        async for chunk in received:
            if not isinstance(chunk, dict):  # a line of the protocol that has no content
                yield _delta(chunk)
        return
    async for chunk in stream:
        yield replace(_delta(chunk), finish_reason=None, usage=None)
    usages = [usage for chunk in stream.chunks if (usage := getattr(chunk, "usage", None))]
    yield Delta(finish_reason=stream.received_finish_reason, usage=usages[-1] if usages else None)


@cache
def _streams_of_openais_shape() -> Any:
    # Loaded with LiteLLM.
    from litellm.llms.anthropic.chat.handler import ModelResponseIterator
    from litellm.llms.openai.chat.gpt_transformation import OpenAIChatCompletionStreamingHandler
    from openai import AsyncStream

    return (AsyncStream, ModelResponseIterator, OpenAIChatCompletionStreamingHandler)


def _delta(chunk: Any) -> Delta:
    usage = getattr(chunk, "usage", None)
    choice = chunk.choices[0] if chunk.choices else None
    if choice is None or choice.delta is None:
        return Delta(finish_reason=choice and choice.finish_reason, usage=usage)
    told = choice.delta
    reasoning = getattr(told, "reasoning_content", None) or getattr(told, "reasoning", None)
    logprobs = getattr(choice, "logprobs", None)
    return Delta(
        text=told.content or getattr(told, "refusal", None) or "",
        reasoning=reasoning if isinstance(reasoning, str) else "",
        tool_calls=tuple(told.tool_calls or ()),
        logprobs=tuple(getattr(logprobs, "content", None) or ()),
        finish_reason=choice.finish_reason,
        usage=usage,
    )


def _running_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process, in a thread of its own; a forked child gets another one."""
    global _loop, _loop_pid
    with _lock:
        if _loop is None or _loop_pid != os.getpid():
            _loop, _loop_pid = uvloop.new_event_loop(), os.getpid()
            _loop.set_default_executor(ThreadPoolExecutor(_NUM_THREADS, "litellm"))
            _loop.set_exception_handler(_tell_of_lost_exception)
            threading.Thread(target=_loop.run_forever, name="litellm-loop", daemon=True).start()
        return _loop


def _tell_of_lost_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Without its text, which may quote a request."""
    exception = context.get("exception")
    logger.warning("LiteLLM left something behind: %s", type(exception).__name__)
