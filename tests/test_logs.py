"""The log of each task."""

import logging
import re
from collections.abc import Iterator

import pytest
from django.conf import settings

from monitoring import logs
from monitoring.redis_client import client
from tests.conftest import Valkey, wait_until

logger = logging.getLogger("inference.tested")


@pytest.fixture
def shipping(valkey: Valkey) -> Iterator[None]:
    parent = logging.getLogger("inference")
    before = list(parent.handlers)
    logger.setLevel(logging.DEBUG)
    logs.start()
    yield
    parent.handlers = before


def test_lines_with_a_task_id_are_kept(shipping: None) -> None:
    logger.info("Task %s: began", "a", extra={"task_id": "a"})
    logger.warning("Task %s: odd", "a", extra={"task_id": "a"})
    logger.info("Task %s: other", "b", extra={"task_id": "b"})
    logger.info("of no task")
    wait_until(lambda: logs.task_log("b"))
    lines = logs.task_log("a")
    assert [(line["level"], line["message"]) for line in lines] == [
        ("INFO", "Task a: began"),
        ("WARNING", "Task a: odd"),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", lines[0]["timestamp"])
    assert client().keys("*") != []
    assert 0 < client().ttl("task:a:log") <= settings.TASK_TTL_SECONDS


def test_log_of_a_task_is_bounded(shipping: None) -> None:
    num_lines = 3 * logs.MAX_LINES_PER_TASK
    for index in range(num_lines):
        logger.debug("line %d", index, extra={"task_id": "a"})
    logger.debug("last", extra={"task_id": "b"})
    wait_until(lambda: logs.task_log("b"))
    lines = logs.task_log("a")
    # Redis trims by whole blocks of a hundred entries, which costs it least.
    assert logs.MAX_LINES_PER_TASK <= len(lines) <= logs.MAX_LINES_PER_TASK + 100
    assert lines[-1]["message"] == f"line {num_lines - 1}"


def test_starting_twice_ships_once(shipping: None) -> None:
    logs.start()
    logger.info("once", extra={"task_id": "a"})
    logger.info("mark", extra={"task_id": "b"})
    wait_until(lambda: logs.task_log("b"))
    assert len(logs.task_log("a")) == 1


def test_dead_redis_loses_lines_and_nothing_else(shipping: None, valkey: Valkey) -> None:
    valkey.stop()
    logger.info("lost", extra={"task_id": "a"})
    assert logs.task_log("a") == []
    valkey.start()
    client().flushall()

    def ships() -> bool:
        logger.info("kept", extra={"task_id": "a"})
        return bool(logs.task_log("a"))

    wait_until(ships)


def test_deleted_logs_are_gone(shipping: None) -> None:
    for task_id in ("a", "b"):
        client().xadd(f"task:{task_id}:log", {"timestamp": "", "level": "INFO", "message": "m"})
    logs.delete([])
    logs.delete(["a"])
    assert logs.task_log("a") == []
    assert len(logs.task_log("b")) == 1
