"""The log of each task and the log of the service, from logging to the API."""

import logging
import multiprocessing
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from django.conf import settings
from rest_framework.test import APIClient

from monitoring.events import events
from monitoring.events.events import EventType
from monitoring.logs import service_log
from monitoring.redis import outbox
from monitoring.redis.client import client
from tests.conftest import Valkey, wait_until

LOGS = "/api/v1/monitor/logs"

logger = logging.getLogger("inference.tested")


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    root, loggers = logging.getLogger(), [logging.getLogger("uvicorn"), logger]
    before = [(each, list(each.handlers), each.level) for each in (root, *loggers)]
    yield
    for each, handlers, level in before:
        each.handlers, each.level = handlers, level


@pytest.fixture
def sending(valkey: Valkey) -> None:
    """This process sends what it logs, beginning with nothing."""
    logger.setLevel(logging.DEBUG)
    service_log.start("tested worker")
    flush()
    client().delete("logs")


def flush() -> None:
    """Wait until what was logged so far is in Redis."""
    assert outbox.flush(20)


def messages(**query: Any) -> list[str]:
    flush()
    return [entry["message"] for entry in service_log.read(1000, **query)[0]]


# The log of a task.


def test_lines_with_a_task_id_are_kept(sending: None) -> None:
    logger.debug("Task %s: began", "a", extra={"task_id": "a"})
    logger.warning("Task %s: odd", "a", extra={"task_id": "a"})
    logger.info("Task %s: other", "b", extra={"task_id": "b"})
    logger.info("of no task")
    flush()
    lines = service_log.task_log("a")
    assert [(line["level"], line["message"]) for line in lines] == [
        ("DEBUG", "Task a: began"),
        ("WARNING", "Task a: odd"),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", lines[0]["timestamp"])
    assert 0 < client().ttl("task:a:log") <= settings.TASK_TTL_SECONDS


def test_log_of_a_task_is_bounded(sending: None) -> None:
    num_lines = 3 * service_log.MAX_LINES_PER_TASK
    for index in range(num_lines):
        logger.debug("line %d", index, extra={"task_id": "a"})
    flush()
    lines = service_log.task_log("a")
    # Redis trims by whole blocks of a hundred entries, which costs it least.
    assert service_log.MAX_LINES_PER_TASK <= len(lines) <= service_log.MAX_LINES_PER_TASK + 100
    assert lines[-1]["message"] == f"line {num_lines - 1}"


def test_deleted_logs_are_gone(sending: None) -> None:
    for task_id in ("a", "b"):
        client().xadd(f"task:{task_id}:log", {"timestamp": "", "level": "INFO", "message": "m"})
    service_log.delete([])
    service_log.delete(["a"])
    assert service_log.task_log("a") == []
    assert len(service_log.task_log("b")) == 1


# The log of the service.


def test_entry_says_who_logged_what_and_when(sending: None) -> None:
    logger.info("Task %s: began", "a", extra={"task_id": "a", "owner": "alice"})
    logging.getLogger("anything.else").error("Disk %s", "full")
    flush()
    disk, task = service_log.read(10)[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", disk["timestamp"])
    assert {**disk, "timestamp": "", "id": ""} == {
        "id": "",
        "timestamp": "",
        "level": "ERROR",
        "logger": "anything.else",
        "message": "Disk full",
        "task_id": None,
        "owner": None,
        "process": "tested worker",
    }
    assert (task["task_id"], task["owner"], task["logger"]) == ("a", "alice", "inference.tested")
    assert 0 < client().ttl("logs") <= 7 * 86_400


def test_owner_reads_lines_of_its_own_tasks_alone(sending: None) -> None:
    logger.info("of alice", extra={"task_id": "a", "owner": "alice"})
    logger.info("of bob", extra={"task_id": "b", "owner": "bob"})
    logger.info("of nobody")
    assert messages() == ["of nobody", "of bob", "of alice"]
    assert messages(owner="alice") == ["of alice"]
    assert messages(owner="alice", task_id="b") == []


def test_debug_and_the_transports_own_records_stay_out(sending: None) -> None:
    logger.debug("details")
    logger.debug("details of a task", extra={"task_id": "a"})
    for name in ("redis.connection", "channels_redis.core", "channels", "uvicorn.access"):
        logging.getLogger(name).error("about the transport")
    logging.getLogger("redistribution").error("about something else")
    assert messages() == ["about something else"]


def test_records_of_uvicorn_are_kept_although_it_does_not_pass_them_on(valkey: Valkey) -> None:
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.propagate = False
    try:
        service_log.start("web")
        logging.getLogger("uvicorn.error").error("Exception in ASGI application")
        assert messages() == ["Exception in ASGI application"]
    finally:
        uvicorn.propagate = True


def test_starting_twice_sends_once(sending: None) -> None:
    service_log.start("another")
    logger.info("once", extra={"task_id": "a"})
    assert messages() == ["once"]
    assert len(service_log.task_log("a")) == 1


def test_forked_child_sends_its_own(sending: None) -> None:
    logger.info("of the parent")
    child = multiprocessing.get_context("fork").Process(target=_log_and_flush)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert sorted(messages()) == ["of the child", "of the parent"]


def _log_and_flush() -> None:
    logger.info("of the child")
    flush()


def test_exception_is_one_line(sending: None) -> None:
    try:
        int("x")
    except ValueError:
        logger.exception("Cannot count")
    [message] = messages()
    assert message == "Cannot count: ValueError: invalid literal for int() with base 10: 'x'"


def test_secrets_are_not_kept(sending: None) -> None:
    try:
        int("redis://:hunter2@cache:6379")
    except ValueError:
        logger.exception("No %s", "Bearer abcdefgh12345", extra={"task_id": "a"})
    expected = (
        "No Bearer ***: ValueError: "
        "invalid literal for int() with base 10: 'redis://***@cache:6379'"
    )
    assert messages() == [expected]
    assert service_log.task_log("a")[0]["message"] == expected


def test_long_message_is_cut(sending: None) -> None:
    logger.info("%s api_key=topsecret", "x" * 5000)
    [message] = messages()
    assert message == "x" * 4095 + "…"


def test_record_that_cannot_be_formatted_stops_nothing(sending: None) -> None:
    class Unspeakable:
        def __str__(self) -> str:
            raise RuntimeError

    logging.raiseExceptions, before = False, logging.raiseExceptions  # pytest's handler fails on it
    try:
        logger.info("%d items", "many")
        logger.info("this: %s", Unspeakable())
    finally:
        logging.raiseExceptions = before
    logger.info("after")
    assert messages() == ["after", "this: %s", "%d items"]


def test_dead_redis_loses_lines_and_nothing_else(sending: None, valkey: Valkey) -> None:
    valkey.stop()
    logger.info("lost", extra={"task_id": "a"})
    assert service_log.task_log("a") == []
    valkey.start()
    client().flushall()

    def is_sent() -> bool:
        logger.info("kept", extra={"task_id": "a"})
        return bool(service_log.task_log("a"))

    wait_until(is_sent)


def test_records_that_wait_are_bounded(sending: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_log._SINK, "gather_seconds", 60.0)
    monkeypatch.setattr(service_log._SINK, "max_waiting", 100)
    for index in range(500):
        logger.info("line %d", index)
    assert outbox.flush(20)
    assert [entry["message"] for entry in service_log.read(1000)[0]][-1] == "line 400"


def test_log_of_the_service_is_bounded_in_number(sending: None) -> None:
    pipe = client().pipeline(transaction=False)
    for index in range(service_log.MAX_ENTRIES + 2000):
        pipe.xadd("logs", {"timestamp": "", "message": str(index)})
    pipe.execute()
    logger.info("last")
    flush()
    assert service_log.MAX_ENTRIES <= client().xlen("logs") <= service_log.MAX_ENTRIES + 100


def test_log_of_the_service_is_bounded_in_time(sending: None) -> None:
    now_ms = time.time() * 1000
    fields = dict.fromkeys(("timestamp", "logger", "task_id", "process"), "") | {"level": "INFO"}
    for days, message in ((8, "too old"), (6, "old")):
        moment = round(now_ms - days * 86_400_000)
        client().xadd("logs", fields | {"message": message}, id=f"{moment}-0")
    assert [entry["message"] for entry in service_log.read(10)[0]] == ["old"]
    logger.info("new")
    assert messages() == ["new", "old"]


def test_many_lines_share_one_round_trip(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    num_sent = 0
    send = redis.Connection.send_packed_command

    def count(*args: Any, **kwargs: Any) -> None:
        nonlocal num_sent
        num_sent += 1
        send(*args, **kwargs)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(events, "publish", lambda *_, **__: None)
    monkeypatch.setattr(redis.UnixDomainSocketConnection, "send_packed_command", count)
    records = [
        logger.makeRecord(
            "inference.tested", level, "", 0, "line", (), None, extra={"task_id": "a"}
        )
        for level in [logging.DEBUG, logging.INFO] * 20
    ]
    client().ping()  # connected from here on
    num_sent = 0
    for record in records:
        service_log.LogHandler().emit(record)
    assert outbox.flush(20)
    assert num_sent == 1
    assert len(service_log.task_log("a")) == 40
    assert client().xlen("logs") == 20


# Out to whoever watches.


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EventType, Any, str | None]]:
    """What is published instead of being sent."""
    published: list[tuple[EventType, Any, str | None]] = []

    def publish(event_type: EventType, data: Any, owner: str | None) -> None:
        published.append((event_type, data, owner))

    monkeypatch.setattr(events, "publish", publish)
    return published


def test_records_are_published(
    sending: None, told: list[tuple[EventType, Any, str | None]]
) -> None:
    logger.info("Task %s: began", "a", extra={"task_id": "a", "owner": "alice"})
    logger.debug("details", extra={"task_id": "a"})
    wait_until(lambda: told)
    [(event_type, data, owner)] = told
    assert (event_type, owner) == (EventType.LOG, "alice")
    assert {**data, "timestamp": ""} == {
        "timestamp": "",
        "level": "INFO",
        "logger": "inference.tested",
        "message": "Task a: began",
        "task_id": "a",
        "owner": "alice",
        "process": "tested worker",
    }


def test_records_about_the_delivery_of_events_are_no_events(
    sending: None, told: list[tuple[EventType, Any, str | None]]
) -> None:
    outbox.logger.warning("Events are late")
    logger.info("of someone else")
    assert messages() == ["of someone else", "Events are late"]
    wait_until(lambda: told)
    assert [data["message"] for _, data, _ in told] == ["of someone else"]


def test_records_that_sending_causes_are_not_sent(
    sending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(*_: object, **__: object) -> None:
        logger.warning("caused by a record")

    monkeypatch.setattr(events, "publish", publish)
    logger.info("the record")
    assert messages() == ["the record"]
    assert messages() == ["the record"]


# GET /monitor/logs.


@pytest.fixture
def four_records(sending: None) -> None:
    logger.info("one", extra={"task_id": "a"})
    logger.warning("two")
    logger.error("three", extra={"task_id": "b"})
    logger.critical("four", extra={"task_id": "a"})
    flush()


@pytest.mark.usefixtures("four_records")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["four", "three", "two", "one"]),
        ({"level": "DEBUG"}, ["four", "three", "two", "one"]),
        ({"level": "WARNING"}, ["four", "three", "two"]),
        ({"level": "CRITICAL"}, ["four"]),
        ({"task_id": "a"}, ["four", "one"]),
        ({"task_id": "a", "level": "ERROR"}, ["four"]),
        ({"task_id": "nobody"}, []),
        ({"limit": "4"}, ["four", "three", "two", "one"]),
    ],
)
def test_newest_come_first_and_filters_choose(
    api: APIClient, query: dict[str, str], expected: list[str]
) -> None:
    body = api.get(LOGS, query).json()
    assert [entry["message"] for entry in body["logs"]] == expected
    assert body["results"] == body["logs"]
    assert (body["next"], body["previous"]) == (None, None)


@pytest.mark.usefixtures("four_records")
@pytest.mark.parametrize("query", [{"limit": "1"}, {"limit": "1", "level": "INFO"}])
def test_pages_lead_to_all_records_each_once(api: APIClient, query: dict[str, str]) -> None:
    found: list[str] = []
    response = api.get(f"{LOGS}/", query)
    while True:
        body = response.json()
        found += [entry["message"] for entry in body["logs"]]
        if body["next"] is None:
            break
        logger.info("newer")  # moves no page
        flush()
        response = api.get(body["next"])
    assert found == ["four", "three", "two", "one"]


def test_search_goes_through_all_records(
    api: APIClient, sending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_log, "_SEARCH_STEP", 3)
    logger.error("far back")
    for index in range(20):
        logger.info("line %d", index)
    flush()
    assert [entry["message"] for entry in api.get(LOGS, {"level": "ERROR"}).json()["logs"]] == [
        "far back"
    ]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "x"},
        {"limit": "9" * 5000},
        {"level": "info"},
        {"level": "LOUD"},
        {"before": "yesterday"},
        {"before": "1-1 COUNT 5"},
        {"before": "9" * 30},
        {"tsak_id": "a"},
    ],
)
def test_bad_parameter_is_refused_by_name(api: APIClient, query: dict[str, str]) -> None:
    response = api.get(LOGS, query)
    assert response.status_code == 400
    body = response.json()
    assert body["error"] == "validation_error"
    assert list(body["details"]) == list(query)


def test_without_redis_the_log_is_unavailable(api: APIClient, valkey: Valkey) -> None:
    valkey.stop()
    response = api.get(LOGS)
    assert response.status_code == 503
    assert response.json()["error"] == "unavailable"
    assert response["Retry-After"]
