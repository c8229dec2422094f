"""One session at a time on a GPU."""

import threading

import pytest
from pytest_django import Settings

from inference.execution import gpu_lock
from monitoring.hardware import worker_identity
from monitoring.redis.client import client
from tests.conftest import Valkey, wait_until
from tests.inference.lifecycle.test_lifecycle import worker_process

LEASE, TASK = "gpu:here:0:lease", "gpu:here:0:task"


@pytest.fixture(autouse=True)
def _node(settings: Settings) -> None:
    settings.NODE_NAME = "here"


def test_holder_is_shown_with_its_task(valkey: Valkey) -> None:
    with gpu_lock.hold([0]):
        me = worker_identity.current()
        assert client().mget(LEASE, TASK) == [me, None]
        gpu_lock.show_task([0], "task_1")
        assert client().mget(LEASE, TASK) == [me, "task_1"]
        assert 0 < client().ttl(LEASE) <= 15
        with gpu_lock.hold([1]):  # another GPU is free
            assert client().get("gpu:here:1:lease") == me
    assert client().keys("gpu:*") == []


def test_two_workers_of_overlapping_gpus_take_turns(valkey: Valkey) -> None:
    with gpu_lock.hold([1, 0]):
        me = worker_identity.current()
        gpu_lock.show_task([1, 0], "task_1")
        assert client().mget(LEASE, "gpu:here:1:lease") == [me, me]
        assert client().mget(TASK, "gpu:here:1:task") == ["task_1", "task_1"]
    assert client().keys("gpu:*") == []


def test_gpu_of_another_node_is_another_gpu(valkey: Valkey, settings: Settings) -> None:
    with gpu_lock.hold([0]):
        gpu_lock.show_task([0], "task_1")
        settings.NODE_NAME = "there"
        with gpu_lock.hold([0]):
            gpu_lock.show_task([0], "task_2")
        assert client().get(TASK) == "task_1"


def test_gpu_is_given_back_after_an_error(valkey: Valkey) -> None:
    with pytest.raises(RuntimeError), gpu_lock.hold([0]):
        raise RuntimeError("the session broke")
    assert client().get(LEASE) is None


def test_lease_that_redis_lost_is_taken_again(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_lock, "_RENEW_SECONDS", 0.01)
    with gpu_lock.hold([0]):
        client().delete(LEASE)
        wait_until(lambda: client().get(LEASE) == worker_identity.current())
        client().set(LEASE, "another worker")
    assert client().get(LEASE) == "another worker"


def test_second_waits_for_the_first(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lock, "_RETRY_SECONDS", 0.01)
    events: list[str] = []

    def second() -> None:
        with gpu_lock.hold([0]):
            events.append("second")

    thread = threading.Thread(target=second)
    with gpu_lock.hold([0]):
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        events.append("first")
    thread.join(20)
    assert events == ["first", "second"]


def test_dead_holder_is_pushed_aside(valkey: Valkey, dead_worker: str) -> None:
    client().set(LEASE, dead_worker, ex=3600)
    with gpu_lock.hold([0]):
        assert client().get(LEASE) == worker_identity.current()


@pytest.mark.parametrize("is_here", [True, False])
def test_holder_that_may_live_is_waited_for(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    monkeypatch.setattr(gpu_lock, "_RETRY_SECONDS", 0.01)
    with worker_process() as process:
        holder = worker_identity.of_pid(process.pid) if is_here else f"elsewhere:{process.pid}:1"
        client().set(LEASE, holder, ex=3600)
        got = threading.Event()

        def wait() -> None:
            with gpu_lock.hold([0]):
                got.set()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        assert not got.wait(0.1)
        client().delete(LEASE)  # as when its time runs out
        assert got.wait(20)
        thread.join()


def test_lease_is_renewed_while_it_is_held(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lock, "_RENEW_SECONDS", 0.02)
    with gpu_lock.hold([0]):
        client().expire(LEASE, 2)
        wait_until(lambda: client().ttl(LEASE) > 10)


def test_lease_of_another_is_not_given_back(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    with gpu_lock.hold([0]):
        client().set(LEASE, "elsewhere:1")
    assert client().get(LEASE) == "elsewhere:1"
    assert "not given back" in caplog.text


def test_running_session_goes_on_without_redis(valkey: Valkey) -> None:
    with gpu_lock.hold([0]):
        valkey.stop()
        gpu_lock.show_task([0], "task_1")
