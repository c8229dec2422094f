"""Embeddings through the whole service."""

import os
import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis

from benchmarks import faults
from benchmarks.running_service import (
    API_WORKER,
    DEFAULT_WORKER,
    EMBEDDINGS_WORKER,
    GPU_WORKER,
    MINILM,
    WEB,
    RunningService,
    is_alive,
    mapped_files,
    wait_for,
)

MANY = [f"number {n} of many texts" for n in range(2048)]


@pytest.fixture
def embeddings(service: RunningService) -> RunningService:
    """The service, with its default model loaded."""
    vectors(service, "a text")
    return service


def embed(service: RunningService, *texts: str, **fields: Any) -> httpx.Response:
    body = {"texts": list(texts), **fields}
    return service.http.post("/embeddings", json=body, timeout=100)


def vectors(service: RunningService, *texts: str) -> list[list[float]]:
    response = embed(service, *texts)
    assert response.status_code == 200, response.text
    found: list[list[float]] = response.json()["embeddings"]
    return found


def keys_left(service: RunningService) -> dict[bytes, int]:
    """What of requests and answers is in Redis."""
    with redis.Redis(unix_socket_path=str(service.var_dir / "valkey.sock")) as valkey:
        found: Any = valkey.keys("embedding:*")
        return {b"answers": len(found), b"requests": int(str(valkey.xlen("embeddings:requests")))}


def test_texts_become_vectors(embeddings: RunningService) -> None:
    body = embed(embeddings, "a cat", "a kitten", "word " * 1000).json()
    assert [len(vector) for vector in body["embeddings"]] == [384] * 3
    assert body["dimensions"] == 384
    assert body["model"] == MINILM
    assert body["truncated"] == [2]
    assert body["usage"]["total_tokens"] == 4 + 4 + 256
    assert sum(x * x for x in body["embeddings"][0]) == pytest.approx(1, abs=1e-5)


def test_similar_texts_are_near_each_other(embeddings: RunningService) -> None:
    body = {"query": "a cat", "texts": ["a kitten", "corporate tax law"]}
    near, far = embeddings.http.post("/embeddings/similarity", json=body).json()["similarities"]
    assert near > far + 0.3


def test_only_the_embeddings_child_maps_pytorch(embeddings: RunningService) -> None:
    assert "libtorch" in mapped_files(embeddings.embeddings_child())
    for mark in (WEB, API_WORKER, DEFAULT_WORKER, GPU_WORKER, EMBEDDINGS_WORKER):
        for pid in embeddings.pids(mark):
            assert "libtorch" not in mapped_files(pid)


def test_child_whose_models_are_idle_gives_its_memory_back(embeddings: RunningService) -> None:
    vectors(embeddings, "a text")  # its use is in the row from then on
    child = embeddings.embeddings_child()
    with sqlite3.connect(embeddings.var_dir / "db.sqlite3") as database:
        idle = "UPDATE inference_registeredmodel SET unload_at = last_used_at WHERE name = ?"
        database.execute(idle, [MINILM])
    wait_for(lambda: not is_alive(child))
    assert not embeddings.model(MINILM)["loaded"]
    assert "libtorch" not in mapped_files(embeddings.embeddings_child())
    assert len(vectors(embeddings, "a text")) == 1


def test_many_clients_get_what_each_would_get_alone(embeddings: RunningService) -> None:
    texts = [f"client {n} says {'word ' * (n % 40)}" for n in range(64)]
    with ThreadPoolExecutor(64) as clients:
        together = list(clients.map(lambda text: vectors(embeddings, text)[0], texts))
    for number in (0, 17, 39, 63):
        alone = vectors(embeddings, texts[number])[0]
        assert together[number] == pytest.approx(alone, abs=1e-5)
    assert keys_left(embeddings) == {b"answers": 0, b"requests": 0}


def test_small_request_overtakes_a_large_one(embeddings: RunningService) -> None:
    done: list[str] = []

    def ask_for_many() -> None:
        rows = vectors(embeddings, *MANY)
        done.append(f"many: {len(rows)}")

    large = threading.Thread(target=ask_for_many)
    large.start()
    wait_for(lambda: keys_left(embeddings)[b"requests"] == 1)
    vectors(embeddings, "a small one")
    done.append("small")
    large.join(60)
    assert done == ["small", "many: 2048"]


def test_waiting_clients_hold_no_thread(embeddings: RunningService) -> None:
    """There are eight of them in all, and forty requests that wait."""
    with ThreadPoolExecutor(40) as clients:
        with faults.stopped(embeddings.embeddings_child()):
            waiting = [clients.submit(vectors, embeddings, f"text {n}") for n in range(40)]
            wait_for(lambda: keys_left(embeddings)[b"requests"] == 40)
            assert embeddings.http.get("/models").status_code == 200
        assert all(len(each.result(60)) == 1 for each in waiting)


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_requests_survive_the_death_of(embeddings: RunningService, victim: str) -> None:
    many = MANY[:1024]
    with ThreadPoolExecutor(9) as clients:
        asked = [clients.submit(embed, embeddings, *many)]
        asked += [clients.submit(embed, embeddings, f"text {n}") for n in range(8)]
        wait_for(lambda: keys_left(embeddings)[b"requests"])
        dying = embeddings.embeddings_child()
        os.kill(dying if victim == "child" else embeddings.pid(EMBEDDINGS_WORKER), signal.SIGKILL)
        answers = [each.result(90) for each in asked]
    assert [answer.status_code for answer in answers] == [200] * 9
    assert len(answers[0].json()["embeddings"]) == len(many)
    assert not any(keys_left(embeddings).values())


def test_requests_survive_a_valkey_that_is_killed_and_comes_back_empty(
    embeddings: RunningService,
) -> None:
    with ThreadPoolExecutor(8) as clients:
        with faults.stopped(embeddings.embeddings_child()):
            asked = [clients.submit(embed, embeddings, f"text {n}") for n in range(8)]
            wait_for(lambda: keys_left(embeddings)[b"requests"] == 8)
            faults.empty_valkey(embeddings)
        answers = [each.result(90) for each in asked]
    assert [answer.status_code for answer in answers] == [200] * 8


def test_client_that_hangs_up_is_forgotten(embeddings: RunningService) -> None:
    url = f"{embeddings.base_url}/api/v1/embeddings"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={"texts": MANY}, timeout=0.3, trust_env=False)
    wait_for(lambda: not any(keys_left(embeddings).values()))
    assert vectors(embeddings, "a text")
