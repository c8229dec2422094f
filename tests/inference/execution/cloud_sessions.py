"""The cloud session's event loop, from a test's own thread."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar

from inference.execution.cloud_session import running_session
from inference.lifecycle.claim import Lease

T = TypeVar("T")

LIMIT_SECONDS = 60


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it to its end on the session's loop."""
    loop = running_session().loop
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(LIMIT_SECONDS)


def execute(lease: Lease) -> None:
    """Answer a claimed task, and store its end."""
    wait(running_session().execute(lease))


def start(generator: AsyncGenerator[T, None]) -> "Future[None]":
    """Follow what a provider gives, until that is cancelled."""

    async def follow() -> None:
        async with aclosing(generator):
            async for _ in generator:
                pass

    return asyncio.run_coroutine_threadsafe(follow(), running_session().loop)


def deltas(generator: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """What a provider gives, one after the other; closing this closes the generator."""

    async def following() -> T:
        return await anext(generator)

    try:
        while True:
            try:
                delta = wait(following())
            except StopAsyncIteration:
                return
            yield delta
    finally:
        wait(generator.aclose())
