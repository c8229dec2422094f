"""Events of a process reach the log and the group, and cost their publisher nothing."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import redis
from channels.layers import get_channel_layer

from monitoring.events import log, publisher
from monitoring.events.events import EventType
from monitoring.events.log import LoggedEvent
from monitoring.redis import outbox
from tests.conftest import Valkey, wait_until
from tests.live_server import progress, tell, tell_all

_PUBLISH_AND_EXIT = """
import django
django.setup()
from tests.live_server import tell
for number in range(3):
    tell(number)
"""


END = 1_000_000


def logged() -> list[int]:
    """The numbers that were told and are in the log, in order."""
    return [event.data["attempt"] for event in log.read(0).events]


def messages_while(tell_something: Callable[[], None]) -> list[list[dict[str, Any]]]:
    """The events of each message that the group gets, up to the reading that ends it all."""

    async def listen() -> list[list[dict[str, Any]]]:
        layer: Any = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add(publisher.GROUP, channel)
        await asyncio.to_thread(tell_something)
        progress(END)
        messages: list[list[dict[str, Any]]] = [[]]
        while not messages[-1] or messages[-1][-1]["data"].get("tokens_generated") != END:
            message = await asyncio.wait_for(layer.receive(channel), 20)
            assert message["type"] == publisher.MESSAGE_TYPE
            messages.append(message["events"])
        await layer.flush()
        return messages

    return asyncio.run(listen())


def test_events_are_logged_in_the_order_they_were_told(valkey: Valkey) -> None:
    tell_all(range(1000))
    assert logged() == list(range(1000))


def test_group_gets_events_with_their_numbers_and_readings_without(valkey: Valkey) -> None:
    def tell_something() -> None:
        tell(1)
        progress(5)
        tell(2)

    events = [event for message in messages_while(tell_something) for event in message][:-1]
    assert [each["type"] for each in events] == ["task.queued", "task.progress", "task.queued"]
    in_log = log.read(0).events
    assert [LoggedEvent(**each) for each in events if each["seq"]] == in_log
    assert events[1]["seq"] is None
    assert events[1]["owner"] == "local"


def test_events_of_a_burst_share_messages(valkey: Valkey) -> None:
    messages = messages_while(lambda: tell_all(range(500)))
    assert sum(map(len, messages)) == 501
    assert len(messages) < 250


def test_events_are_kept_back_while_redis_is_away_and_readings_are_not(valkey: Valkey) -> None:
    tell_all(range(1))
    valkey.stop()
    tell_all(range(1, 5))
    progress(1)
    valkey.start()
    tell_all(range(5, 6))
    messages = messages_while(lambda: tell_all(range(6, 7)))
    types = [event["type"] for message in messages for event in message]
    assert types.count(EventType.TASK_PROGRESS) == 1  # the one that ends it
    assert logged() == list(range(7))


def test_only_the_latest_are_kept_back(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher._SINK, "max_waiting", 50)
    valkey.stop()
    tell_all(range(1))  # fails, and stays a batch of its own
    for number in range(1, 200):
        tell(number)
    outbox.flush()
    valkey.start()
    tell_all(range(200, 201))
    wait_until(lambda: logged()[-1:] == [200])
    assert logged()[-50:] == list(range(151, 201))
    assert len(logged()) <= 52


def test_batch_whose_answer_was_lost_is_logged_once(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = log.append
    num_calls = 0

    def append_and_lose_the_answer(*args: Any) -> list[LoggedEvent]:
        nonlocal num_calls
        num_calls += 1
        numbered = append(*args)
        if num_calls == 1:
            raise redis.TimeoutError
        return numbered

    monkeypatch.setattr(log, "append", append_and_lose_the_answer)
    tell_all(range(3))
    tell_all(range(3, 5))
    wait_until(lambda: num_calls > 1)
    outbox.flush()
    assert logged() == list(range(5))


def test_publisher_does_not_wait_for_a_stalled_redis(valkey: Valkey) -> None:
    tell_all(range(1))
    with valkey.hanging():
        for number in range(1, 100):
            tell(number)  # a publisher that waited would do so until the test times out
    wait_until(lambda: logged()[-1:] == [99])
    assert logged() == list(range(100))


def test_forked_child_tells_by_itself(valkey: Valkey) -> None:
    tell_all(range(1))
    pid = os.fork()
    if pid == 0:
        tell_all(range(1, 2))
        os._exit(0)
    os.waitpid(pid, 0)
    assert logged() == [0, 1]


def test_process_that_ends_at_once_has_told_all(valkey: Valkey) -> None:
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "sopllm.settings"}
    command = [sys.executable, "-c", _PUBLISH_AND_EXIT]
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert logged() == [0, 1, 2]


def test_lost_redis_is_logged_once(valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    outbox._outbox.forget()
    valkey.stop()
    for number in range(5):
        tell_all(range(number, number + 1))
    assert caplog.text.count("Events are late") == 1
    valkey.start()
    wait_until(lambda: logged() == list(range(5)))
