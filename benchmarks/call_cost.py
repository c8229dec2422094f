"""What a call of a cloud model costs: `python benchmarks/call_cost.py [--json FILE]`.

Milliseconds of the processor for a call, microseconds for a token, of the calling process alone:
by what the service does for `openai_compatible` models, by LiteLLM as it does for all others, and
by OpenAI's SDK. In turns, 16 calls at a time, against a server that answers at once. A minute.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sopllm.settings")
os.environ["VAR_DIR"] = tempfile.mkdtemp(prefix="sopllm-")
django.setup()

from benchmarks.figures import Figures, report  # noqa: E402 (after Django's set-up)
from benchmarks.running_service import free_port, wait_for  # noqa: E402
from inference.models import RegisteredModel  # noqa: E402
from inference.providers.cloud import direct, stream  # noqa: E402
from inference.providers.cloud.library import library  # noqa: E402

NUM_ROUNDS = 5
NUM_AT_ONCE = 16
NUM_CALLS = {4: 200, 204: 30}  # by the deltas of an answer
BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "alpha beta gamma delta"}],
    "max_tokens": 8,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}
# Answers each request at once, a delta a write.
SERVER = """
import asyncio, json, sys

def event(**fields):
    told = json.dumps({"id": "c", "object": "chat.completion.chunk", **fields})
    return f"data: {told}\\n\\n".encode()

delta = event(choices=[{"index": 0, "delta": {"content": "word "}, "finish_reason": None}])
end = event(
    choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}],
    usage={"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8},
) + b"data: [DONE]\\n\\n"
num_deltas = int(sys.argv[2])
head = (
    "HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\n"
    f"Content-Length: {num_deltas * len(delta) + len(end)}\\r\\n\\r\\n"
).encode()

async def serve(reader, writer):
    try:
        while request := await reader.readuntil(b"\\r\\n\\r\\n"):
            fields = dict(line.split(b": ", 1) for line in request.lower().splitlines()[1:-1])
            await reader.readexactly(int(fields[b"content-length"]))
            writer.write(head)
            for _ in range(num_deltas):
                writer.write(delta)
                await asyncio.sleep(0)
            writer.write(end)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""

Call = Callable[[], AsyncIterator[Any]]


def ways(url: str) -> dict[str, Call]:
    """Each gives the events of a call."""
    model = RegisteredModel(provider="openai_compatible", config={"base_url": url})
    client = library().AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    of_litellm = {"num_retries": 0, "max_retries": 0, "caching": False, "no-log": True}
    of_litellm |= BODY | {"model": "custom_openai/m", "api_base": url, "api_key": "none"}

    async def by_sdk() -> AsyncIterator[Any]:
        async for chunk in await client.chat.completions.create(**BODY):
            yield chunk

    return {
        "the service, directly": lambda: direct.events(model, BODY, None),
        "the service, through LiteLLM": lambda: stream.events(of_litellm),
        "OpenAI's SDK": by_sdk,
    }


async def milliseconds(call: Call, num_calls: int) -> float:
    """Of this process, for one call."""
    limit = asyncio.Semaphore(NUM_AT_ONCE)

    async def one() -> None:
        async with limit:
            async for _ in call():
                pass

    started = time.process_time()
    await asyncio.gather(*(one() for _ in range(num_calls)))
    return (time.process_time() - started) * 1000 / num_calls


async def measure_ways(url: str, num_calls: int) -> dict[str, list[float]]:
    calls = ways(url)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        await milliseconds(call, NUM_AT_ONCE)
    for _ in range(NUM_ROUNDS):
        for name, call in calls.items():
            found[name].append(await milliseconds(call, num_calls))
    return found


def measure() -> dict[str, Any]:
    """All figures of one run."""
    found = {}
    for num_deltas, num_calls in NUM_CALLS.items():
        port = free_port()
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(num_deltas)])
        try:
            wait_for(partial(listens, port))
            found[num_deltas] = asyncio.run(measure_ways(f"http://127.0.0.1:{port}", num_calls))
        finally:
            server.kill()
            server.wait()
        direct._client.forget()  # it is of the loop that has ended
    short, long = NUM_CALLS
    return {name: figures(found[short][name], found[long][name], long - short) for name in found[4]}


def figures(of_short: list[float], of_long: list[float], num_more: int) -> Figures:
    more_ms = median(of_long) - median(of_short)
    return {
        "ms a call, min": round(min(of_short), 2),
        "ms a call, median": round(median(of_short), 2),
        "ms a call, max": round(max(of_short), 2),
        "us a token": round(more_ms * 1000 / num_more, 1),
    }


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    report(__doc__, measure)
