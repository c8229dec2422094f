"""Batches through the whole service, by the official client."""

import json
import os
import signal
from typing import Any

import pytest
from openai import OpenAI
from openai.types import Batch

from benchmarks.running_service import (
    DEFAULT_WORKER,
    MINILM,
    SMOLLM2,
    RunningService,
    wait_for,
)

ENDED = ("completed", "failed", "expired", "cancelled")
NUM_LINES = 300


@pytest.fixture
def client(service: RunningService) -> OpenAI:
    return OpenAI(base_url=f"{service.base_url}/v1", api_key="unused")


def chat(index: int, model: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Question {index}"}]
    return {"model": model, "messages": messages, **fields}


def create(client: OpenAI, endpoint: Any, bodies: list[Any]) -> Batch:
    lines = [
        json.dumps({"custom_id": f"line-{n}", "method": "POST", "url": endpoint, "body": body})
        for n, body in enumerate(bodies)
    ]
    file = client.files.create(file=("a.jsonl", "\n".join(lines).encode()), purpose="batch")
    assert client.files.retrieve(file.id).bytes > 0
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"of": "test"}
    )


def ended(client: OpenAI, batch: Batch) -> Batch:
    wait_for(lambda: client.batches.retrieve(batch.id).status in ENDED, 90)
    return client.batches.retrieve(batch.id)


def answers(client: OpenAI, batch: Batch) -> list[Any]:
    assert batch.status == "completed", batch
    assert batch.output_file_id is not None
    found = [json.loads(each) for each in client.files.content(batch.output_file_id).iter_lines()]
    assert [each["custom_id"] for each in found] == [f"line-{n}" for n in range(len(found))]
    return found


def test_killed_worker_loses_and_repeats_no_line(
    client: OpenAI, running_service: RunningService
) -> None:
    bodies = [chat(index, "echo") for index in range(NUM_LINES)]
    batch = create(client, "/v1/chat/completions", bodies)
    wait_for(lambda: _num_done(client, batch) > 0, 60)
    _kill_default_worker(running_service)
    wait_for(lambda: _num_done(client, batch) > NUM_LINES / 2, 60)
    _kill_default_worker(running_service)
    found = answers(client, ended(client, batch))
    assert len(found) == NUM_LINES
    for number, each in enumerate(found):
        text = each["response"]["body"]["choices"][0]["message"]["content"]
        assert f"Question {number}" in text
    assert batch.id in [each.id for each in client.batches.list(limit=10)]


def _kill_default_worker(service: RunningService) -> None:
    for pid in service.pids(DEFAULT_WORKER):
        os.kill(pid, signal.SIGKILL)


def _num_done(client: OpenAI, batch: Batch) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    return counts.completed if counts else 0


def test_chats_of_a_local_model_are_answered(client: OpenAI) -> None:
    bodies = [chat(index, SMOLLM2, max_tokens=4) for index in range(4)]
    found = answers(client, ended(client, create(client, "/v1/chat/completions", bodies)))
    assert [each["response"]["body"]["usage"]["completion_tokens"] > 0 for each in found] == 4 * [
        True
    ]


def test_embeddings_are_answered(client: OpenAI) -> None:
    bodies = [{"model": MINILM, "input": f"Text {index}"} for index in range(20)]
    found = answers(client, ended(client, create(client, "/v1/embeddings", bodies)))
    assert {len(each["response"]["body"]["data"][0]["embedding"]) for each in found} == {384}


def test_cancelled_batch_keeps_its_answers(client: OpenAI) -> None:
    bodies = [chat(index, "slow-echo") for index in range(1000)]
    batch = create(client, "/v1/chat/completions", bodies)
    wait_for(lambda: _num_done(client, batch) > 0, 60)
    assert client.batches.cancel(batch.id).status == "cancelling"
    end = ended(client, batch)
    assert end.status == "cancelled"
    assert end.request_counts is not None
    assert 0 < end.request_counts.completed < 1000
    assert end.request_counts.completed + end.request_counts.failed == 1000
    assert end.output_file_id is not None
    lines = client.files.content(end.output_file_id).text.splitlines()
    assert len(lines) == end.request_counts.completed
