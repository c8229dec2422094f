"""The service beside llama-server, asked by the same client in the same words, in turns.

`python benchmarks/peer_llama_server.py --llama-server PATH [--beside-loop] [--rounds N]
[--clients N ...] [--json FILE]`. Both have SmolLM2 with eight sequences and stream chats from
/v1/chat/completions; ours is first in each other round. Short prompts have about 40 tokens and
answers of 64; long ones, of 1,000 tokens, are asked by one client, by four, and beside four running
answers. llama-server is built from the sources that llama-cpp-python carries, so that both run the
same llama.cpp. About ten minutes; `--beside-loop`: another process keeps a core busy all the time.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figures, keep, machine, options_parser, show
from benchmarks.running_service import SMOLLM2, RunningService, free_port, wait_for

NUM_SEQUENCES = 8
MAX_TOKENS = 64
# Requests of a round by the number of clients.
SHORT = {1: 6, 4: 16, 8: 32, 16: 48}
LONG = {1: 2, 4: 4}
NUM_RUNNING = 4
# SmolLM2's tokens that end an answer: else one server computes less than the other.
NO_END = {"0": -100, "2": -100}
SUBJECTS = ("stone", "salt", "bread", "glass", "owls", "maps", "rain", "clocks", "rivers", "wool")
NUM_LONG_WORDS = 960
OURS, PEER = "ours", "llama-server"


@dataclass(slots=True)
class Answer:
    """When its request was sent, when each of its deltas came, and how many tokens it has."""

    started: float
    came: list[float] = field(default_factory=list)
    num_tokens: int = 0

    @property
    def first_token_ms(self) -> float:
        return (self.came[0] - self.started) * 1000

    def gaps_ms(self, since: float = 0.0) -> list[float]:
        """Between deltas, those that came before a time left out."""
        pairs = zip(self.came, self.came[1:], strict=False)
        return [(after - before) * 1000 for before, after in pairs if after > since]


def prompt(tag: str, number: int, *, is_long: bool = False) -> str:
    """No two alike, from their first words on."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    words = [SUBJECTS[(number + i * i) % len(SUBJECTS)] for i in range(is_long * NUM_LONG_WORDS)]
    return " ".join([f"{tag} {number}.", *words, f"Write a long story about {subject}."])


async def ask(
    http: aiohttp.ClientSession, url: str, content: str, answer: Answer, max_tokens: int
) -> None:
    body = {
        "model": SMOLLM2,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": NO_END,
    }
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if b'"content":"' in line and b'"content":""' not in line:
                answer.came.append(time.perf_counter())
            if b'"completion_tokens"' in line:
                answer.num_tokens = int(
                    line.split(b'"completion_tokens":')[1].split(b",")[0].strip(b" }")
                )


def session() -> aiohttp.ClientSession:
    """Each request has a connection of its own: llama-server closes them."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector)


async def load(url: str, num_clients: int, contents: list[str]) -> Figures:
    """What clients see that ask one after another."""
    left, answers = list(contents), []
    async with session() as http:

        async def client() -> None:
            while left:
                answers.append(answer := Answer(time.perf_counter()))
                await ask(http, url, left.pop(), answer, MAX_TOKENS)

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(num_clients)))
        seconds = time.perf_counter() - started
    return {
        "tokens_per_second": sum(each.num_tokens for each in answers) / seconds,
        "first_token_ms": median(each.first_token_ms for each in answers),
        **gaps([gap for each in answers for gap in each.gaps_ms()]),
    }


async def beside_running(url: str, tag: str) -> Figures:
    """The first token of a long prompt beside running answers, and how long these wait for theirs.

    Only gaps that end after the long prompt was sent.
    """
    running = [Answer(time.perf_counter()) for _ in range(NUM_RUNNING)]
    async with session() as http:
        asks = [
            asyncio.create_task(ask(http, url, prompt(tag, number), answer, 1000))
            for number, answer in enumerate(running)
        ]
        while not all(len(answer.came) > MAX_TOKENS // 4 for answer in running):
            await asyncio.sleep(0.02)
        long = Answer(time.perf_counter())
        await ask(http, url, prompt(tag, NUM_RUNNING, is_long=True), long, 1)
        for each in asks:  # a client that goes ends its answer
            each.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
    return {
        "first_token_ms": long.first_token_ms,
        **gaps([gap for each in running for gap in each.gaps_ms(long.started)]),
    }


def gaps(milliseconds: list[float]) -> Figures:
    """Between the deltas that a client gets."""
    percentiles = quantiles(milliseconds, n=100, method="inclusive")
    return {"between_tokens_p50_ms": percentiles[49], "between_tokens_p99_ms": percentiles[98]}


def measure_once(url: str, name: str, num_clients: int, tag: str) -> Figures:
    if name == "beside":
        return asyncio.run(beside_running(url, tag))
    is_long = name == "long"
    num_requests = (LONG if is_long else SHORT)[num_clients]
    contents = [prompt(tag, number, is_long=is_long) for number in range(num_requests)]
    return asyncio.run(load(url, num_clients, contents))


def compare(urls: dict[str, str], num_rounds: int, clients: list[int]) -> dict[str, Any]:
    """Medians over the rounds; the ratios of ours to the peer's are those of each round."""
    for url in urls.values():
        measure_once(url, "short", 4, "warm")
    loads = [("short", number) for number in clients]
    loads += [("long", number) for number in LONG if number in clients]
    loads += [("beside", NUM_RUNNING)] if NUM_RUNNING in clients else []
    titles = {
        "short": "short prompts, clients:",
        "long": "1,000-token prompts, clients:",
        "beside": "a 1,000-token prompt beside running answers:",
    }
    figures: dict[str, Any] = {}
    for name, num_clients in loads:
        rounds = []
        for number in range(num_rounds):
            order = [OURS, PEER] if number % 2 == 0 else [PEER, OURS]
            tag = f"{name} {num_clients} {number}"
            rounds.append(
                {each: measure_once(urls[each], name, num_clients, tag) for each in order}
            )
        table = {}
        for figure in rounds[0][OURS]:
            ratios = [each[OURS][figure] / max(each[PEER][figure], 0.01) for each in rounds]
            table[figure] = {
                OURS: round(median(each[OURS][figure] for each in rounds), 1),
                PEER: round(median(each[PEER][figure] for each in rounds), 1),
                "ratio": round(median(ratios), 2),
                "ratio_min_max": f"{min(ratios):.2f}-{max(ratios):.2f}",
            }
        figures[f"{titles[name]} {num_clients}"] = table
        show({f"{titles[name]} {num_clients}": table})
    return figures


@contextlib.contextmanager
def busy_loop() -> Iterator[None]:
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def measure(
    llama_server: Path, num_rounds: int, clients: list[int], *, beside_loop: bool
) -> dict[str, Any]:
    service, port = RunningService(), free_port()
    peer: subprocess.Popen[bytes] | None = None
    try:
        service.start("--no-demo")
        weights = service.var_dir / "models" / service.model(SMOLLM2)["config"]["model_path"]
        command = [
            *(str(llama_server), "-m", str(weights), "--port", str(port)),
            *("-np", str(NUM_SEQUENCES), "-c", str(NUM_SEQUENCES * 2048), "-t", "2"),
        ]
        with (service.var_dir / "peer.log").open("wb") as log:
            peer = subprocess.Popen(command, stdout=log, stderr=log)
        urls = {OURS: service.base_url, PEER: f"http://127.0.0.1:{port}"}
        wait_for(lambda: is_ready(urls[PEER]), 60, every_seconds=0.2)
        with busy_loop() if beside_loop else contextlib.nullcontext():
            return {"machine": machine(), **compare(urls, num_rounds, clients)}
    finally:
        if peer is not None:
            peer.kill()
            peer.wait()
        service.close()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--llama-server", type=Path, required=True, help="the program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", choices=SHORT, default=list(SHORT))
    parser.add_argument("--beside-loop", action="store_true", help="beside a busy process")
    options = parser.parse_args()
    keep(
        measure(
            options.llama_server, options.rounds, options.clients, beside_loop=options.beside_loop
        ),
        options.json,
    )
