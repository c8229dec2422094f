"""Several processes and threads that write to one SQLite file."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection, transaction

from inference.models import RegisteredModel

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "sqlite", reason="a backend for SQLite alone"),
]

NUM_WRITES = 10
WRITER = """
import sys, django
django.setup()
from django.db import connection, transaction
from django.db.models import F
from inference.models import RegisteredModel
connection.settings_dict["NAME"] = sys.argv[1]
mode = sys.argv[2]
if mode == "hold":
    with transaction.atomic():
        RegisteredModel.objects.update(size_bytes=1000)
        print("holding", flush=True)
        sys.stdin.read()
for _ in range(int(mode)):
    with transaction.atomic():
        size = RegisteredModel.objects.get(name="counter").size_bytes
        RegisteredModel.objects.filter(name="counter").update(size_bytes=size + 1)
"""


def writer(mode: str) -> subprocess.Popen[bytes]:
    """Another process that writes to the tests' database."""
    command = [sys.executable, "-c", WRITER, str(connection.settings_dict["NAME"]), mode]
    env = os.environ | {"DJANGO_SETTINGS_MODULE": "sopllm.settings"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=env, cwd=settings.BASE_DIR, stdin=pipe, stdout=pipe, stderr=pipe
    )


@pytest.fixture
def _counter() -> None:
    RegisteredModel.objects.create(name="counter", provider="echo", size_bytes=0)


def count() -> int:
    size = RegisteredModel.objects.get(name="counter").size_bytes
    assert size is not None
    return size


def add_one() -> None:
    with transaction.atomic():
        RegisteredModel.objects.filter(name="counter").update(size_bytes=count() + 1)


def write_and_close() -> None:
    add_one()
    connection.close()


def descriptor() -> int | None:
    """That of the lock file, while this thread's connection holds the lock."""
    backend: Any = connection
    found: int | None = backend._lock_descriptor
    return found


@pytest.mark.usefixtures("_counter")
def test_threads_and_processes_lose_no_write() -> None:
    errors: list[Exception] = []

    def write() -> None:
        try:
            for _ in range(NUM_WRITES):
                add_one()
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)
        finally:
            connection.close()

    processes = [writer(str(NUM_WRITES)) for _ in range(2)]
    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    assert errors == []
    assert count() == NUM_WRITES * 6


@pytest.mark.usefixtures("_counter")
def test_killed_holder_frees_the_lock_and_leaves_nothing() -> None:
    holder = writer("hold")
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"holding\n"
    done = threading.Event()

    def write() -> None:
        add_one()
        connection.close()
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not done.wait(0.2)
    assert count() == 0  # readers do not wait
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    thread.join(20)
    assert done.is_set()
    assert count() == 1


@pytest.mark.usefixtures("_counter")
def test_rollback_frees_the_lock() -> None:
    with transaction.atomic():
        add_one()
        transaction.set_rollback(True)
    assert descriptor() is None
    thread = threading.Thread(target=write_and_close)
    thread.start()
    thread.join(20)
    assert count() == 1


@pytest.mark.usefixtures("_counter")
def test_closed_connection_frees_the_lock() -> None:
    def vanish() -> None:
        transaction.set_autocommit(False)
        RegisteredModel.objects.update(size_bytes=9)
        connection.close()

    thread = threading.Thread(target=vanish)
    thread.start()
    thread.join()
    add_one()
    assert count() == 1


@pytest.mark.usefixtures("_counter")
def test_nested_transactions_take_the_lock_once() -> None:
    with transaction.atomic():
        add_one()
        with transaction.atomic():
            add_one()
            transaction.set_rollback(True)
        assert descriptor() is not None
    assert descriptor() is None
    assert count() == 1


@pytest.mark.usefixtures("_counter")
def test_forked_child_starts_with_a_lock_of_its_own() -> None:
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            holding.set()
            release.wait(20)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(20)
    child = os.fork()
    if child == 0:
        from sopllm.sqlite import base

        os._exit(1 if base._one_thread.locked() else 0)
    release.set()
    thread.join()
    _, status = os.waitpid(child, 0)
    assert status == 0


@pytest.mark.usefixtures("_counter")
def test_forked_child_has_no_part_in_the_lock() -> None:
    add_one()
    child = os.fork()
    if child == 0:
        links = [link.resolve().name for link in Path("/proc/self/fd").iterdir()]
        os._exit(any(name.endswith("-lock") for name in links))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
