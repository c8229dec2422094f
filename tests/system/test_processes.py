"""What each process holds in memory, and what Flower sees of the workers."""

from pathlib import Path
from typing import Any

import httpx

from benchmarks.running_service import (
    API_WORKER,
    BEAT,
    DEFAULT_WORKER,
    EMBEDDINGS_WORKER,
    FLOWER,
    FLOWER_PASSWORD,
    FLOWER_USER,
    GPU_WORKER,
    VALKEY,
    WEB,
    RunningService,
    mapped_files,
    wait_for,
)
from tests.system.conftest import HUB_TOKEN, LANGFUSE_SECRET_KEY, NAMED_API_KEY


def flower(
    service: RunningService, path: str, password: str | None = FLOWER_PASSWORD
) -> httpx.Response:
    """What Flower answers, which starts last."""

    def answer() -> httpx.Response | None:
        try:
            return service.http.get(
                f"http://127.0.0.1:{service.flower_port}{path}",
                auth=(FLOWER_USER, password) if password else None,
            )
        except httpx.ConnectError:
            return None

    return wait_for(answer)


def test_only_the_pool_child_maps_llama_cpp(service: RunningService) -> None:
    service.ended(service.submit("Say hello.", max_tokens=2))
    assert "libllama" in mapped_files(service.gpu_child())
    others = [
        pid
        for mark in (WEB, API_WORKER, DEFAULT_WORKER, BEAT, FLOWER)
        for pid in service.pids(mark)
    ]
    for pid in (service.pid(GPU_WORKER), *others):
        assert "libllama" not in mapped_files(pid)
        assert "libtorch" not in mapped_files(pid)


def test_flower_shows_nothing_without_its_password(service: RunningService) -> None:
    for path in ("/", "/workers", "/api/workers", "/broker"):
        for password in (None, "guessed"):
            assert flower(service, path, password).status_code == 401


def test_secret_is_in_the_environment_of_the_processes_that_use_it_alone(
    service: RunningService,
) -> None:
    users = {
        NAMED_API_KEY: {API_WORKER, EMBEDDINGS_WORKER},
        HUB_TOKEN: {DEFAULT_WORKER},
        LANGFUSE_SECRET_KEY: {WEB, GPU_WORKER, API_WORKER, DEFAULT_WORKER},
    }
    marks = (WEB, GPU_WORKER, API_WORKER, DEFAULT_WORKER, EMBEDDINGS_WORKER, BEAT, FLOWER, VALKEY)
    pids = {mark: [service.pid(mark)] for mark in marks}
    pids[GPU_WORKER].append(service.gpu_child())
    pids[EMBEDDINGS_WORKER].append(service.embeddings_child())
    for secret, using in users.items():
        for mark in marks:
            for pid in pids[mark]:
                has_it = secret.encode() in Path(f"/proc/{pid}/environ").read_bytes()
                assert has_it is (mark in using), (mark, secret[:5])


def test_flower_shows_workers_and_a_local_task_by_its_own_id(service: RunningService) -> None:
    # It knows no tasks from before it follows the events.
    wait_for(lambda: "api@" in flower(service, "/workers").text)
    task_id = service.submit("hello", max_tokens=2)
    service.ended(task_id)

    def known() -> dict[str, Any] | None:
        answer = flower(service, f"/api/task/info/{task_id}")
        is_known = answer.status_code == 200 and answer.json()["state"] == "SUCCESS"
        return answer.json() if is_known else None

    info = wait_for(known)
    assert info["name"] == "inference.generate"
    assert info["worker"].startswith("gpu@")
    assert task_id in flower(service, f"/task/{task_id}").text
    page = flower(service, "/workers").text
    assert "gpu@" in page
    assert "api@" in page
