"""The service beside llama-server, asked by the same client in the same words, in turns.

`python benchmarks/peer_llama_server.py --llama-server PATH [--json FILE]`. Both have SmolLM2 with
eight sequences and stream chats of 64 tokens from /v1/chat/completions; ours is first in each other
round. llama-server is built from the sources that llama-cpp-python carries, so that both run
the same llama.cpp. About five minutes.
"""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figures, keep, machine, options_parser, show
from benchmarks.running_service import SMOLLM2, RunningService, free_port, wait_for

NUM_ROUNDS = 5
NUM_SEQUENCES = 8
MAX_TOKENS = 64
# Requests of a round by the number of clients.
LOADS = {1: 6, 4: 16, 8: 32, 16: 48}
SUBJECTS = ("stone", "salt", "bread", "glass", "owls", "maps", "rain", "clocks", "rivers", "wool")
OURS, PEER = "ours", "llama-server"


async def answer(http: aiohttp.ClientSession, url: str, prompt: str) -> tuple[float, int]:
    """Seconds to the first text, and the tokens of the answer."""
    body = {
        "model": SMOLLM2,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first, num_tokens, started = 0.0, 0, time.perf_counter()
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            first = first or (b'"content":"' in line.replace(b": ", b":")) * time.perf_counter()
            if b'"completion_tokens"' in line:
                num_tokens = int(line.split(b'"completion_tokens":')[1].split(b",")[0].strip(b" }"))
    return first - started, num_tokens


async def load(url: str, num_clients: int, tag: str) -> Figures:
    """What clients see that ask one after another."""
    left = [
        f"{tag} {number}. Write a long story about {SUBJECTS[number % len(SUBJECTS)]}."
        for number in range(LOADS[num_clients])
    ]
    answers: list[tuple[float, int]] = []
    # Each request has a connection of its own: llama-server closes them.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http:

        async def client() -> None:
            while left:
                answers.append(await answer(http, url, left.pop()))

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(num_clients)))
        seconds = time.perf_counter() - started
    return {
        "tokens_per_second": sum(tokens for _, tokens in answers) / seconds,
        "first_token_ms": median(first for first, _ in answers) * 1000,
    }


def compare(urls: dict[str, str]) -> dict[str, Any]:
    """Medians over the rounds; a ratio is that of ours to the peer's in the same round."""
    for url in urls.values():
        asyncio.run(load(url, 4, "warm"))
    figures: dict[str, Any] = {}
    for num_clients in LOADS:
        rounds = []
        for number in range(NUM_ROUNDS):
            order = [OURS, PEER] if number % 2 == 0 else [PEER, OURS]
            tag = f"{num_clients} {number}"
            rounds.append({name: asyncio.run(load(urls[name], num_clients, tag)) for name in order})
        table: dict[str, Figures] = {}
        for figure in ("tokens_per_second", "first_token_ms"):
            table[figure] = {
                OURS: round(median(each[OURS][figure] for each in rounds), 1),
                PEER: round(median(each[PEER][figure] for each in rounds), 1),
                "ratio": round(
                    median(each[OURS][figure] / each[PEER][figure] for each in rounds), 2
                ),
            }
        figures[f"{num_clients} clients"] = table
    return figures


def measure(llama_server: Path) -> dict[str, Any]:
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
        return {"machine": machine(), **compare(urls)}
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
    options = parser.parse_args()
    figures = measure(options.llama_server)
    show(figures)
    keep(figures, options.json)
