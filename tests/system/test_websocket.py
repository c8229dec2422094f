"""The feed of the whole service: workers tell, any web process brings it, nothing is lost."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import connect

from benchmarks import faults
from benchmarks.running_service import VALKEY, RunningService
from tests.live_server import Client

AWAY_SECONDS = 3.0


class Load:
    """Echo tasks, submitted one after the other from a thread until it is stopped."""

    def __init__(self, service: RunningService) -> None:
        self.task_ids: list[str] = []
        self._service = service
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._is_over.set()
        self._thread.join()
        for task_id in self.task_ids:
            self._service.ended(task_id, 60)

    def _run(self) -> None:
        while not self._is_over.wait(0.05):
            self.task_ids.append(self._service.submit("one two three", "echo"))


@contextmanager
def socket(service: RunningService) -> Iterator[Client]:
    url = f"ws://127.0.0.1:{service.port}/ws/monitor"
    with connect(url, proxy=None) as connection:
        yield Client(connection)


def logged_after(service: RunningService, seq: int) -> list[dict[str, Any]]:
    """The log as polling tells it."""
    events: list[dict[str, Any]] = []
    url: str | None = f"/monitor/events?after={seq}&limit=1000"
    while url:
        page = service.http.get(url).json()
        assert not page["has_gap"]
        events += page["events"]
        url = page["next"] and f"/monitor/events?{page['next'].partition('?')[2]}"
    return events


def hear_through(client: Client, seq: int) -> list[dict[str, Any]]:
    """Events of the log up to the one with that number."""
    heard: list[dict[str, Any]] = []
    while not heard or heard[-1]["seq"] < seq:
        message = client.hear()
        assert message["type"] != "error", message
        if message["type"] != "task.progress":
            heard.append(message)
    return heard


def test_client_that_was_away_under_load_gets_each_event_once(service: RunningService) -> None:
    with Load(service) as load:
        with socket(service) as client:
            start = client.connected["seq"]
            client.subscribe("task.*", "model.*", since=start)
            heard = [client.hear() for _ in range(30)]
        time.sleep(AWAY_SECONDS)  # being away is what is tested
        with socket(service) as client:
            since = max(message["seq"] for message in heard)
            client.subscribe("task.*", "model.*", since=since)
            heard += [client.hear() for _ in range(30)]
            heard += hear_through(client, client.connected["seq"])
    in_log = [each["seq"] for each in logged_after(service, start)]
    seqs = [each["seq"] for each in heard if each["type"] != "task.progress"]
    assert seqs == [seq for seq in in_log if seq <= seqs[-1]]
    assert len(load.task_ids) > 30


def test_each_task_is_told_from_its_submission_to_its_end(service: RunningService) -> None:
    with socket(service) as client:
        client.subscribe("task.*")
        client.pong()
        with Load(service) as load:
            heard = [client.hear() for _ in range(100)]
        last = logged_after(service, heard[-1]["seq"])[-1]["seq"]
        heard += hear_through(client, last)
    for task_id in load.task_ids:
        own = [each for each in heard if each["data"]["task_id"] == task_id]
        types = [each["type"] for each in own if each["type"] != "task.progress"]
        # The first comes from another process than the rest: where that is held up, it is late.
        assert sorted(types) == ["task.completed", "task.queued", "task.started"]
        assert types.index("task.started") < types.index("task.completed")


def test_open_socket_goes_on_after_valkey_was_killed(service: RunningService) -> None:
    with socket(service) as client:
        client.subscribe("task.*")
        client.pong()
        faults.kill(service.pid(VALKEY))
        task_id = service.submit("one", "echo")
        service.ended(task_id, 60)
        types: list[str] = []
        while "task.completed" not in types:
            types.append(client.hear()["type"])
        assert set(types) - {"task.progress"} == {"task.queued", "task.started", "task.completed"}
