"""Health: what is probed, what is said of it, and that an answer comes whatever hangs."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from celery import current_app
from django.conf import settings
from django.db import connection
from django.test import Client
from pytest_django import DjangoDbBlocker, Settings
from rest_framework.test import APIClient

from monitoring.hardware import workers
from monitoring.health import probes, resources
from monitoring.health import report as health
from monitoring.health.cached_check import CachedCheck
from monitoring.health.probes import Finding, Status
from monitoring.redis.client import client
from tests import otlp_server
from tests.conftest import Valkey, wait_until
from tests.monitoring.hardware.nvml_readings import NVML, SERVER, WORKSTATION
from tests.monitoring.hardware.test_gpu import forget, publish_as

HEALTH = "/api/v1/monitor/health"
# A database that others may write to: its check has a connection of its own.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _nothing_seen_yet() -> Iterator[None]:
    check_anew()
    yield
    check_anew()


def check_anew() -> None:
    forget()
    checks: list[CachedCheck[Any]] = [*health._checks.values(), health._resources, health._gpu]
    for check in checks:
        check._has_ended = None


@pytest.fixture
def all_workers(valkey: Valkey) -> Iterator[None]:
    stops = [
        workers.announce("gpu@host", ["gpu"]),
        workers.announce("api@host", ["api", "default"]),
        workers.announce("embeddings@host", ["embeddings"]),
    ]
    wait_until(lambda: all(workers.count(settings.WORKER_QUEUES).values()))
    yield
    for stop in stops:
        stop.set()


def statuses(body: dict[str, Any]) -> dict[str, str]:
    return {name: component["status"] for name, component in body["components"].items()}


def ask(api: APIClient) -> tuple[int, dict[str, Any]]:
    """Check everything anew."""
    check_anew()
    response = api.get(HEALTH)
    return response.status_code, response.json()


@pytest.mark.usefixtures("all_workers")
@pytest.mark.parametrize("path", [HEALTH, f"{HEALTH}/"])
def test_healthy_service_says_so_of_every_part(api: APIClient, path: str) -> None:
    response = api.get(path)
    assert response.status_code == 200
    body = response.json()
    assert body["status"] == "healthy"
    assert statuses(body) == dict.fromkeys(
        ["database", "redis", "broker", "workers", "channel_layer", "langfuse"], "up"
    )
    assert all(component["message"] for component in body["components"].values())
    assert all(component["response_time_ms"] >= 0 for component in body["components"].values())
    queues = {"gpu": 1, "api": 1, "embeddings": 1, "default": 1}
    assert body["components"]["workers"]["queues"] == queues
    assert "Not configured" in body["components"]["langfuse"]["message"]
    assert body["version"] == settings.VERSION
    assert body["uptime_seconds"] > 0
    assert body["timestamp"].endswith("Z")
    assert body["gpu"] == {"available": False, "num_gpus": 0, "total_mb": None, "used_mb": None}


@pytest.mark.usefixtures("api")
def test_resources_are_those_of_the_machine() -> None:
    read = resources.read()
    assert read["disk_total_mb"] >= read["disk_used_mb"] + read["disk_free_mb"] - 1
    assert read["memory_total_mb"] - read["memory_used_mb"] - read["memory_free_mb"] in (0, 1)
    assert 0 < read["memory_used_percent"] < 100
    reported = health.check()["resources"]
    assert reported is not None
    assert reported["memory_total_mb"] == read["memory_total_mb"]


def test_gpus_are_summed_up(
    api: APIClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = NVML(None)
    stand_in.install(monkeypatch)
    publish_as(settings, stand_in, "workstation", WORKSTATION, 0)
    publish_as(settings, stand_in, "server", SERVER, 0)
    summary = {"available": True, "num_gpus": 3, "total_mb": 121483, "used_mb": 58818}
    assert api.get(HEALTH).json()["gpu"] == summary


def test_queue_without_a_worker_degrades_the_service(api: APIClient) -> None:
    stop = workers.announce("gpu@host", ["gpu"])
    wait_until(lambda: workers.count(["gpu"])["gpu"])
    status_code, body = ask(api)
    stop.set()
    component = body["components"]["workers"]
    assert (status_code, body["status"], component["status"]) == (200, "degraded", "degraded")
    assert component["queues"] == {"gpu": 1, "api": 0, "embeddings": 0, "default": 0}
    assert "No live worker for api, embeddings, default" in component["message"]


def test_without_any_worker_the_service_is_degraded(api: APIClient) -> None:
    status_code, body = ask(api)
    assert (status_code, body["status"]) == (200, "degraded")
    assert body["components"]["workers"]["status"] == "down"


@pytest.mark.usefixtures("all_workers")
def test_dead_redis_is_unhealthy_until_it_is_back(api: APIClient, valkey: Valkey) -> None:
    valkey.stop()
    status_code, body = ask(api)
    assert (status_code, body["status"]) == (503, "unhealthy")
    assert statuses(body) == {
        "database": "up",
        "redis": "down",
        "broker": "down",
        "workers": "down",
        "channel_layer": "down",
        "langfuse": "up",
    }
    for name in ("redis", "broker", "channel_layer"):
        assert "check that it runs, and REDIS_URL" in body["components"][name]["message"]
    valkey.start()
    wait_until(lambda: api.get(HEALTH).json()["status"] == "healthy")


@pytest.mark.usefixtures("all_workers")
def test_hanging_redis_is_told_in_time(api: APIClient, valkey: Valkey) -> None:
    with valkey.hanging():
        started = time.monotonic()
        status_code, body = ask(api)
        first = time.monotonic() - started
        num_threads = threading.active_count()
        again = [api.get(HEALTH).status_code for _ in range(10)]
        assert threading.active_count() <= num_threads
    assert first < 1
    assert [status_code, *again] == [503] * 11
    for name in ("redis", "broker", "channel_layer", "workers"):
        assert body["components"][name]["status"] == "down"
        assert "No answer for 0." in body["components"][name]["message"]
    assert statuses(body)["database"] == "up"
    assert body["resources"] is not None
    wait_until(lambda: api.get(HEALTH).json()["status"] == "healthy")


@pytest.mark.usefixtures("all_workers")
def test_locked_database_is_told_in_time(api: APIClient) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL locks no whole database")
    name = connection.settings_dict["NAME"]
    with closing(sqlite3.connect(name, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        status_code, body = ask(api)
        assert time.monotonic() - started < 1
        other.execute("ROLLBACK")
    assert status_code == 503
    assert "No answer for" in body["components"]["database"]["message"]
    assert statuses(body)["redis"] == "up"
    wait_until(lambda: api.get(HEALTH).json()["status"] == "healthy")


def test_broken_database_is_told_without_its_password(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Finding:
        error = OSError("no route to postgres://app:hunter2@db/sopllm\nand more")
        return probes._down("The database cannot be used", error, "check DATABASE_URL")

    monkeypatch.setattr(health._checks["database"], "_check", broken)
    status_code, body = ask(api)
    assert status_code == 503
    message = body["components"]["database"]["message"]
    assert "hunter2" not in message
    assert message.startswith("The database cannot be used (no route to postgres://***@db")
    assert message.endswith("check DATABASE_URL.")


def test_database_without_its_tables_is_down(django_db_blocker: DjangoDbBlocker) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE django_migrations RENAME TO gone")
    try:
        finding = probes.database()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE gone RENAME TO django_migrations")
    assert finding.status == Status.DOWN


def test_read_only_redis_is_down(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    client().config_set("maxmemory", 1)
    try:
        finding = probes.redis_server()
    finally:
        client().config_set("maxmemory", 0)
    assert finding.status == Status.DOWN
    assert "maxmemory" in finding.message


def test_broker_elsewhere_is_down_while_redis_is_up(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_app.conf, "broker_url", "redis://:hunter2@127.0.0.1:1/0")
    finding = probes.broker()
    assert finding.status == Status.DOWN
    assert "hunter2" not in finding.message
    assert probes.redis_server().status == Status.UP


def test_probes_leave_no_connection_behind(valkey: Valkey) -> None:
    def num_clients() -> int:
        return len(client().client_list())

    def probe() -> None:
        assert probes.broker().status == Status.UP
        assert probes.channel_layer().status == Status.UP

    probe()
    before = num_clients()
    for _ in range(5):
        probe()
    wait_until(lambda: num_clients() <= before)


def test_failing_check_is_told_and_logged(
    api: APIClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Finding:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(health._checks["broker"], "_check", fail)
    status_code, body = ask(api)
    assert status_code == 503
    assert "the log of the web process says why" in body["components"]["broker"]["message"]
    assert "a fault of ours" in caplog.text


@pytest.fixture
def langfuse(settings: Settings) -> Iterator[otlp_server.OtlpServer]:
    settings.LANGFUSE_PUBLIC_KEY, settings.LANGFUSE_SECRET_KEY = "pk", "sk"
    with otlp_server.running("pk", "sk") as server:
        settings.LANGFUSE_HOST = server.url
        yield server


@pytest.mark.usefixtures("all_workers")
def test_langfuse_that_is_away_degrades_the_service(
    api: APIClient, langfuse: otlp_server.OtlpServer
) -> None:
    probes.langfuse()  # its HTTP client takes long to import on a busy machine
    assert ask(api)[1]["components"]["langfuse"]["message"] == "Answers."
    langfuse.status = 503
    status_code, body = ask(api)
    assert (status_code, body["status"]) == (200, "degraded")
    component = body["components"]["langfuse"]
    assert component["status"] == "down"
    assert component["message"].startswith("Langfuse takes no traces (")
    assert component["message"].endswith("check that it runs, and LANGFUSE_HOST.")


def test_hanging_langfuse_is_told_in_time(langfuse: otlp_server.OtlpServer) -> None:
    langfuse.may_answer.clear()
    assert probes.langfuse().status == Status.DOWN


def test_password_of_langfuses_address_is_not_told(
    langfuse: otlp_server.OtlpServer, settings: Settings
) -> None:
    settings.LANGFUSE_HOST = "http://user:hunter2@127.0.0.1:1"
    finding = probes.langfuse()
    assert finding.status == Status.DOWN
    assert "hunter2" not in finding.message


@pytest.mark.usefixtures("valkey")
def test_many_callers_share_one_check() -> None:
    num_checks = 0
    proceed = threading.Event()

    def count() -> int:
        nonlocal num_checks
        num_checks += 1
        proceed.wait(20)
        return num_checks

    check = CachedCheck("tested", count)
    for _ in range(10):
        check.begin()
        assert check.found(0) is None
    proceed.set()
    assert check.found(20) == 1
    check.begin()
    assert check.found(20) == 1
    assert num_checks == 1


@pytest.mark.parametrize("is_well", [True, False])
def test_old_result_is_checked_again(is_well: bool) -> None:
    seen = iter(range(1000))
    check = CachedCheck("tested", lambda: next(seen), lambda _: is_well)

    def found() -> int | None:
        check.begin()
        return check.found(20)

    assert found() == 0
    wait_until(lambda: (found() or 0) > 0)


def test_unknown_parameter_is_refused(api: APIClient) -> None:
    response = api.get(HEALTH, {"deep": 1})
    assert response.status_code == 400
    assert response.json()["error"] == "validation_error"


@pytest.mark.parametrize("path", ["/healthz", "/healthz/", "/healthz?_=1764325000"])
def test_living_process_says_so(client: Client, path: str) -> None:
    assert client.get(path).json() == {"status": "alive"}


@pytest.mark.usefixtures("all_workers")
def test_ready_tells_what_is_up(api: APIClient, valkey: Valkey) -> None:
    up = api.get("/readyz")
    assert up.status_code == 200
    queues = {"gpu": 1, "api": 1, "embeddings": 1, "default": 1}
    assert up.json() == {
        "status": "ready",
        "components": {"database": "up", "redis": "up", "workers": queues},
    }
    valkey.stop()
    check_anew()
    down = api.get("/readyz/")
    assert down.status_code == 200
    assert down.json() == {
        "status": "ready",
        "components": {
            "database": "up",
            "redis": "down",
            "workers": {"gpu": 0, "api": 0, "embeddings": 0, "default": 0},
        },
    }


def test_not_ready_without_a_database(api: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    down = Finding(Status.DOWN, "gone")
    monkeypatch.setattr(health._checks["database"], "_check", lambda: down)
    response = api.get("/readyz")
    assert response.status_code == 503
    assert response.json()["status"] == "unready"
