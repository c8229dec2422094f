"""The database from an event loop: a few lasting threads, each with its own connection."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import close_old_connections, connections

T = TypeVar("T")


class DatabaseThreads:
    """Runs blocking functions for an event loop that must not wait for them."""

    def __init__(self, max_threads: int, name: str) -> None:
        self._max_threads = max_threads
        self._pool = ThreadPoolExecutor(max_threads, thread_name_prefix=name)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call it in one of the threads; it may use the database, and wait.

        A call that is cancelled is waited for: what it does is done when CancelledError is raised.
        """
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(self._pool, _call, function, *arguments)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait([call])
            raise

    async def close(self) -> None:
        """End the threads; call it when none of them works any more."""
        for _ in range(self._max_threads):
            await self.run(connections.close_all)
        self._pool.shutdown()


def _call(function: Callable[..., T], *arguments: Any) -> T:
    """As at the end of a request: a connection that failed is not used again."""
    try:
        return function(*arguments)
    finally:
        close_old_connections()
