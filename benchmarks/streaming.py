"""What live tokens cost, and how soon they come: `python benchmarks/streaming.py [--json FILE]`.

How long after its first token an answer's first event reaches a client; what streaming 8 answers
adds to the engine's time per token, in turns with no streaming, while nobody reads and while 8
clients read on the same cores; and how many tokens 200 clients of instant tasks are given a second.
About six minutes.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import django

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.event_stream import EventParser, StreamedAnswer
from benchmarks.figures import Figures, keep, machine, options_parser, show
from benchmarks.running_service import (
    API_WORKER,
    COUNTING,
    ROOT,
    SMOLLM2,
    VALKEY,
    WEB,
    RunningService,
    read_proc,
)
from inference.engine.engine import Engine
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams
from inference.engine.sequence import FinishReason, SamplingParams
from monitoring.events import events
from monitoring.events.events import EventType
from monitoring.streams import delta_stream
from sopllm.processes import WORKER_NICE

NUM_ANSWERS = 100
NUM_SEQS = 8
NUM_GENERATIONS = 3
NUM_BLOCKS = 32
STEPS_PER_BLOCK = 16
EXCHANGE_SECONDS = 0.05
# As a GPU session does, which reads two counters with each round trip.
NEWS_KEYS = ("gpu:submitted", "gpu:cancelled")
PARTIAL_TEXT = "x" * 1000
NUM_CLIENTS = 200
NUM_WORDS = 200
WORD_MS = 5.0
# Tasks that run for minutes, and say nothing meanwhile: a word a minute, of which the stream takes
# none, since it has a longer text already.
SILENT, SILENCE_MS = "silent", 60_000.0
TIMEOUT = aiohttp.ClientTimeout(total=300)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def prompt(number: int) -> str:
    return f"Write a long story about the year {1800 + number}."


# --- The first token ---


async def first_events(base_url: str, num_at_once: int) -> Figures:
    """Milliseconds from an answer's first token, by its worker's clock, to the client's event."""
    limit = asyncio.Semaphore(num_at_once)
    async with aiohttp.ClientSession(base_url, timeout=TIMEOUT) as session:

        async def one(number: int) -> float:
            async with limit:
                return await first_event_ms(session, number)

        await asyncio.gather(*map(one, range(NUM_SEQS)))  # warm-up
        times = await asyncio.gather(*map(one, range(NUM_ANSWERS)))
    cuts = quantiles(times, n=100)
    return {"p50_ms": round(median(times), 1), "p99_ms": round(cuts[98], 1)}


async def first_event_ms(session: aiohttp.ClientSession, number: int) -> float:
    """The worker says when the attempt began, and how long after that the first token came.

    It began a moment before the worker started to measure, so this is a little too long.
    """
    body = {"model": SMOLLM2, "prompt": prompt(number), "max_tokens": 8, "temperature": 0}
    async with session.post("/api/v1/tasks", json=body) as response:
        task_id = (await response.json())["task_id"]
    arrived_at = 0.0
    async with session.get(f"/api/v1/tasks/{task_id}/stream") as response:
        async for received in response.content.iter_any():
            if not arrived_at and b"event: token" in received:
                arrived_at = time.time()
    async with session.get(f"/api/v1/tasks/{task_id}/report") as response:
        report = await response.json()
    started_at = datetime.fromisoformat(report["task"]["started_at"]).timestamp()
    return (arrived_at - started_at) * 1000 - float(report["metrics"]["ttft_ms"])


# --- The engine's time per token ---


class StreamedEngine:
    """The engine in this process, whose text goes into the streams of tasks that are silent."""

    def __init__(self, model_path: Path, task_ids: Sequence[str]) -> None:
        self._runner = LlamaRunner(LoadParams(path=model_path, max_num_seqs=NUM_SEQS))
        self._engine = Engine(self._runner)
        self._writers = {task_id: delta_stream.DeltaWriter(task_id, 1) for task_id in task_ids}
        self._exchanged_at = 0.0
        self._num_exchanges = 0
        self.num_deltas = 0

    def ratios(self) -> list[float]:
        """Of each streamed block of steps to its neighbours, in one generation."""
        params = SamplingParams(temperature=0, max_tokens=(NUM_BLOCKS + 2) * STEPS_PER_BLOCK)
        tokens = self._tokens(COUNTING["prompt"])
        for task_id in self._writers:
            self._engine.add_request(task_id, tokens, params)
        while len(self._engine.step()) < NUM_SEQS:  # prompts
            pass
        blocks = [self._block(is_streamed=bool(index % 2)) for index in range(NUM_BLOCKS)]
        for task_id in self._writers:
            self._engine.abort(task_id, FinishReason.CANCELLED)
        delta_stream.send(self._writers.values())
        return [
            blocks[index] / mean((blocks[index - 1], blocks[index + 1]))
            for index in range(1, NUM_BLOCKS - 1, 2)
        ]

    def _tokens(self, text: str) -> list[int]:
        rendered = self._runner.chat_template.render([{"role": "user", "content": text}])
        return self._runner.tokenize(rendered)

    def _block(self, *, is_streamed: bool) -> float:
        """Seconds a step; without the first, in which the clients may still read the last one's."""
        self._step(is_streamed)
        started = time.perf_counter()
        for _ in range(STEPS_PER_BLOCK - 1):
            self._step(is_streamed)
        return (time.perf_counter() - started) / (STEPS_PER_BLOCK - 1)

    def _step(self, is_streamed: bool) -> None:
        outputs = self._engine.step()
        assert len(outputs) == NUM_SEQS, "an answer has ended: the prompt is bad"
        if not is_streamed:
            return
        for output in outputs:
            if output.text:
                self._writers[output.request_id].write(output.text)
                self.num_deltas += 1
        if time.monotonic() - self._exchanged_at >= EXCHANGE_SECONDS:
            self._exchanged_at = time.monotonic()
            delta_stream.send(self._writers.values(), read=NEWS_KEYS)
            self._tell_progress()

    def _tell_progress(self) -> None:
        """With every second exchange: ten times a second."""
        self._num_exchanges += 1
        if self._num_exchanges % 2:
            return
        for task_id in self._writers:
            data = events.TaskProgress(
                task_id=task_id, attempt=1, tokens_generated=1, partial_text=PARTIAL_TEXT
            )
            events.publish(EventType.TASK_PROGRESS, data, "local")


def measure_cost(service: RunningService) -> dict[str, Figures]:
    """The ratio of the engine's time per token with streaming to that without."""
    service.register_echo(SILENT, delay_ms=SILENCE_MS)
    task_ids = [service.submit("silence " * 30, SILENT) for _ in range(NUM_SEQS)]
    for task_id in task_ids:
        service.processing(task_id)
    os.environ.update(service.env)  # before Django reads its settings: for streams.send
    django.setup()
    engine = StreamedEngine(next((service.var_dir / "models").glob("SmolLM2*.gguf")), task_ids)
    os.nice(WORKER_NICE)
    unread = cost(engine)
    num_unread = engine.num_deltas
    clients = start_clients(service.base_url, task_ids)
    try:
        read = cost(engine)
        num_read = int(clients.communicate()[0])
    finally:
        clients.kill()
    num_new = engine.num_deltas - num_unread
    assert num_read > 0.95 * num_new, (num_read, num_new)
    return {"nobody reads": unread, f"{NUM_SEQS} clients on these cores": read}


def cost(engine: StreamedEngine) -> Figures:
    ratios = [ratio for _ in range(NUM_GENERATIONS) for ratio in engine.ratios()]
    quarters = quantiles(ratios, n=4)
    return {
        "ratio": round(median(ratios), 3),
        "lower_quartile": round(quarters[0], 3),
        "upper_quartile": round(quarters[2], 3),
    }


def start_clients(base_url: str, task_ids: Sequence[str]) -> "subprocess.Popen[str]":
    """A process with a client for each stream, all connected; prints what they got when told to."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), "--read", base_url, *task_ids],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "connected\n"
    return process


async def read_streams(base_url: str, task_ids: Sequence[str]) -> None:
    """As cheap as can be: they share the machine with what is measured."""
    address = urlsplit(base_url)
    num_tokens = 0

    async def connect(task_id: str) -> Connection:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        request = f"GET /api/v1/tasks/{task_id}/stream HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n"
        writer.write(request.encode())
        await reader.readuntil(b"retry:")
        return reader, writer

    async def count(reader: asyncio.StreamReader) -> None:
        nonlocal num_tokens
        while received := await reader.read(65_536):
            num_tokens += received.count(b"event: token")

    connections = [await connect(task_id) for task_id in task_ids]
    print("connected", flush=True)
    counting = [asyncio.create_task(count(reader)) for reader, _ in connections]
    await asyncio.to_thread(sys.stdin.read)
    print(num_tokens)
    for task in counting:
        task.cancel()


# --- Many clients ---


async def many_clients(service: RunningService) -> Figures:
    """200 tasks of 200 words at once, each with a client that checks its text."""
    words = " ".join(f"word{number}" for number in range(NUM_WORDS))
    body = {"model": "slow-echo", "prompt": words, "max_tokens": NUM_WORDS}
    pids = {
        name: service.pids(mark)
        for name, mark in (("web", WEB), ("api worker", API_WORKER), ("valkey", VALKEY))
    }
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        service.base_url, connector=connector, timeout=TIMEOUT
    ) as session:
        async with session.post("/api/v1/tasks/batch", json=[body] * NUM_CLIENTS) as response:
            task_ids = [task["task_id"] for task in await response.json()]
        before = {name: sum(map(cpu_seconds, each)) for name, each in pids.items()}
        started = time.perf_counter()
        answers = await asyncio.gather(*(read_text(session, task_id) for task_id in task_ids))
        seconds = time.perf_counter() - started
    assert [answer.text for answer in answers] == [words] * NUM_CLIENTS
    num_tokens = NUM_CLIENTS * NUM_WORDS
    used = {name: sum(map(cpu_seconds, each)) - before[name] for name, each in pids.items()}
    return {
        "tokens_per_second": round(num_tokens / seconds, 1),
        **{
            f"{name}, CPU us per token": round(cpu / num_tokens * 1e6, 1)
            for name, cpu in used.items()
        },
    }


async def read_text(session: aiohttp.ClientSession, task_id: str) -> StreamedAnswer:
    answer, parser = StreamedAnswer(), EventParser()
    async with session.get(f"/api/v1/tasks/{task_id}/stream") as response:
        async for received in response.content.iter_any():
            answer.take(parser.feed(received))
    return answer


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = read_proc(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure() -> dict[str, Any]:
    """All figures of one run."""
    service = RunningService()
    try:
        service.start("--no-demo")
        service.register_echo("slow-echo", delay_ms=WORD_MS)
        figures: dict[str, Any] = {
            "first event after first token": asyncio.run(first_events(service.base_url, 1)),
            "the same, 8 at once": asyncio.run(first_events(service.base_url, NUM_SEQS)),
            f"{NUM_CLIENTS} clients": asyncio.run(many_clients(service)),
        }
        # The last, since it makes this process a nicer one.
        figures["engine's time per token, streamed / not"] = measure_cost(service)
    finally:
        service.close()
    return {
        "machine": machine(),
        **figures,
    }


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--read", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        asyncio.run(read_streams(options.read[0], options.read[1:]))
        return
    figures = measure()
    show(figures)
    keep(figures, options.json)


if __name__ == "__main__":
    main()
