"""What each process holds in memory, and what Flower sees of the workers."""

from typing import Any

import httpx

from benchmarks.running_service import (
    API_WORKER,
    BEAT,
    DEFAULT_WORKER,
    FLOWER,
    FLOWER_PASSWORD,
    FLOWER_USER,
    GPU_WORKER,
    WEB,
    RunningService,
    mapped_files,
    wait_for,
)


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


def test_flower_shows_workers_and_a_task_by_its_own_id(service: RunningService) -> None:
    task_id = service.submit("hello", "echo")
    service.ended(task_id)

    def known() -> dict[str, Any] | None:
        answer = flower(service, f"/api/task/info/{task_id}")
        is_known = answer.status_code == 200 and answer.json()["state"] == "SUCCESS"
        return answer.json() if is_known else None

    info = wait_for(known)
    assert info["name"] == "inference.generate"
    assert info["worker"].startswith("api@")
    assert task_id in flower(service, f"/task/{task_id}").text
    page = flower(service, "/workers").text
    assert "gpu@" in page
    assert "api@" in page
