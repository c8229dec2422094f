"""A real Valkey for every test; the models and clients that tests share."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis
from django.conf import settings
from django.db import connection, transaction
from django.test import TransactionTestCase
from rest_framework.test import APIClient
from xdist.scheduler import LoadFileScheduling

from inference import dispatch
from inference.api.submission import build_task
from inference.api.task_serializers import submission_validator
from inference.lifecycle import submit
from inference.models import GenerationTask, RegisteredModel
from monitoring.api.principal import LOCAL, Principal
from monitoring.hardware import worker_identity
from monitoring.redis import outbox
from monitoring.redis.client import client
from presets import catalogue
from sopllm import processes
from tests import environment
from tests.described_client import DescribedClient

# On a busy machine inputs are generated slowly, which says nothing about the code.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
# For `pytest --hypothesis-profile=long --timeout=0`, after a change of what reads foreign input.
hypothesis.settings.register_profile(
    "long", hypothesis.settings.get_profile("tests"), max_examples=3000
)
hypothesis.settings.load_profile("tests")

# These share one running service, whose processes need all cores: no two of them at a time.
SYSTEM_TESTS = "tests/system/"
# The tests that stop that service come last.
LAST_TESTS = f"{SYSTEM_TESTS}test_stop.py"


class FilesAndOneService(LoadFileScheduling):  # type: ignore[misc]
    """Under `pytest -n`, the tests of a file run in one process, and all system tests in one."""

    def _split_scope(self, nodeid: str) -> str:
        is_system_test = nodeid.startswith(SYSTEM_TESTS)
        return SYSTEM_TESTS if is_system_test else str(super()._split_scope(nodeid))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under `pytest -n`, the system tests begin first, since they take longest.

    Tests without a database are left to SQLite, where they are the same.
    """
    if environment.DATABASE_URL:
        items[:] = [item for item in items if _needs_database(item)]
    is_worker = hasattr(config, "workerinput")
    items.sort(
        key=lambda item: (
            is_worker and not item.nodeid.startswith(SYSTEM_TESTS),
            item.nodeid.startswith(LAST_TESTS),
        )
    )


def _needs_database(item: pytest.Item) -> bool:
    fixtures: list[str] = getattr(item, "fixturenames", [])
    has_fixture = not {"db", "transactional_db", "running_service"}.isdisjoint(fixtures)
    return has_fixture or item.get_closest_marker("django_db") is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndOneService:
    return FilesAndOneService(config, log)


def _delete_rows(_: TransactionTestCase) -> None:
    """Delete what a test has committed.

    Django would make each permission anew every time, and on PostgreSQL each table's file.
    """
    tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
    with transaction.atomic(), connection.cursor() as cursor:
        for table in set(tables) - {"auth_permission", "django_content_type"}:
            cursor.execute(f'DELETE FROM "{table}"')  # noqa: S608 (names of our own tables)


TransactionTestCase._fixture_teardown = _delete_rows  # type: ignore[attr-defined]


class Valkey:
    """The embedded server, which tests may stop, kill and start again."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings.VALKEY_SOCKET.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            processes.valkey().command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self.answers)

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Takes connections, and answers none meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def answers(self) -> bool:
        try:
            return bool(client().ping())
        except redis.RedisError:
            return False


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Poll a condition; fail when it does not hold in time."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"Not within {seconds} s: {condition}")
        time.sleep(0.01)


@pytest.fixture(scope="session")
def _valkey_process() -> Iterator[Valkey]:
    server = Valkey()
    server.start()
    yield server
    outbox.flush()  # items that wait for a Valkey would be logged as lost
    server.stop()


@pytest.fixture
def valkey(_valkey_process: Valkey) -> Iterator[Valkey]:
    """An empty Valkey; running again when the test has ended."""
    outbox.flush()  # items of the test before
    client().flushall()
    dispatch._broker_down_until = 0.0
    yield _valkey_process
    if not _valkey_process.answers():
        _valkey_process.start()
    dispatch._broker_down_until = 0.0
    wait_until_enqueued()


def wait_until_enqueued() -> None:
    """Wait for the messages of all tasks that were submitted so far."""
    assert outbox.flush(20)


@pytest.fixture
def api(db: None, valkey: Valkey) -> APIClient:
    """A client of the API as the local owner, with a real broker that nobody listens to."""
    return client_of(LOCAL)


def client_of(principal: Principal) -> APIClient:
    """A client of the API without an ASGI handler, which would find who asks."""
    api_client = DescribedClient()
    user: Any = principal
    api_client.force_authenticate(user)
    return api_client


@pytest.fixture
def echo(db: None) -> RegisteredModel:
    return RegisteredModel.objects.create(name="echo", provider="echo")


@pytest.fixture
def dead_worker() -> str:
    """The identity of a process of this host that is no more."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = worker_identity.of_pid(child.pid)
    child.communicate()
    return identity


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The SmolLM2 weights, in MODELS_DIR."""
    return packaged_file("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma_file() -> Path:
    """The weights of Gemma 3 270M, in MODELS_DIR."""
    return packaged_file("gemma-3-270m")


def packaged_file(preset_name: str) -> Path:
    [preset] = (preset for preset in catalogue.packaged() if preset.name == preset_name)
    weights = preset.packaged_file
    assert weights is not None
    assert weights.is_installed(), f"{preset.package} is not installed: run `make setup`"
    weights.put_into_models_dir()
    return Path(settings.MODELS_DIR) / preset.filename


@pytest.fixture
def new_task(echo: RegisteredModel, valkey: Valkey) -> Callable[..., GenerationTask]:
    """Makes submitted tasks: `new_task(priority=5)`; `conversation` and `owner` may be given."""

    def make(owner: str = "local", **fields: object) -> GenerationTask:
        body = {"model": "echo", "prompt": "one two three"} | fields
        data = submission_validator().run_validation(body)
        task = build_task(owner, data, data.get("idempotency_key"))
        return submit.submit([task])[0]

    return make
