"""Clocks that are set, and those of two processes that differ."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from conversations.models import Conversation
from inference.lifecycle import claim, finish, lease_renewer, sweep
from inference.models import GenerationTask, ModelDownload, Queue, RegisteredModel
from monitoring.hardware import worker_identity
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed

NewTask = Callable[..., GenerationTask]
pytestmark = pytest.mark.django_db


@contextmanager
def database_clock_ahead(seconds: float) -> Iterator[None]:
    """The database's clock is set forward meanwhile, for this connection."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("CREATE SCHEMA ahead")
            cursor.execute(
                "CREATE FUNCTION ahead.statement_timestamp() RETURNS timestamptz LANGUAGE sql AS "
                f"$$SELECT pg_catalog.clock_timestamp() + interval '{seconds} seconds'$$"
            )
            # A function's name is looked up in the order of the path.
            cursor.execute("SET search_path TO ahead, pg_catalog, public")
        yield
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO DEFAULT")
        return
    ahead_seconds = seconds
    real = sqlite3.connect(":memory:", check_same_thread=False)

    def strftime(form: str, moment: str, *modifiers: str) -> str:
        values = (form, moment, f"{ahead_seconds} seconds", *modifiers)
        marks = ", ".join("?" * len(values))
        return str(real.execute(f"SELECT STRFTIME({marks})", values).fetchone()[0])

    connection.connection.create_function("STRFTIME", -1, strftime)
    yield
    ahead_seconds = 0  # SQLite does not give its own function back


@pytest.mark.parametrize("seconds", [30, 86_400])
def test_living_workers_keep_their_leases_when_the_clock_is_set_forward(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    for name, value in (("_ahead_seconds", None), ("_distrusted_until", 0.0)):
        monkeypatch.setattr(sweep, name, value)  # as they were for the tests that follow
    lease, dead = claimed(new_task()), claimed(new_task())
    model = RegisteredModel.objects.create(name="m", provider="local", status="registered")
    ModelDownload.start(model)
    download = ModelDownload.objects.claim_next(worker_identity.current())
    assert download is not None
    sweep.sweep()
    with database_clock_ahead(seconds):
        assert GenerationTask.objects.lost().count() == 2
        sweep.sweep()
        sweep.sweep()
        lease_renewer.renew([lease, lease_renewer.HeldRow(download)])
        lease_renewer.refresh([lease, dead])
        assert not lease.lost
        assert not dead.lost
        later = time.monotonic() + settings.LEASE_SECONDS
        monkeypatch.setattr(time, "monotonic", lambda: later)
        sweep.sweep()
        lease_renewer.refresh([lease, dead])
        assert not lease.lost
        assert dead.lost
        assert download.store_progress(1, 2)


def test_dead_worker_of_this_host_is_swept_whatever_the_clock_shows(
    new_task: NewTask, dead_worker: str
) -> None:
    lease = claimed(new_task())
    GenerationTask.objects.update(worker=dead_worker)
    sweep.sweep()
    lease_renewer.refresh([lease])
    assert lease.lost


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has its host's clock")
@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_task_of_a_host_whose_clock_is_wrong_has_the_time_of_the_database(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    right = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: right + timedelta(seconds=seconds))
    task = new_task(deadline_seconds=60)
    assert task.deadline_at is not None
    assert abs(task.created_at - right) < timedelta(seconds=30)
    assert abs(task.deadline_at - right) < timedelta(seconds=90)
    lease = claim.claim_most_urgent(Queue.API)
    assert lease is not None
    assert lease.task == task


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_turns_run_in_the_order_of_submission_whatever_clocks_show(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    conversation = Conversation.objects.create(owner="local")
    turns = [new_task(conversation_id=conversation.pk)]
    with monkeypatch.context() as other_process:
        elsewhere = timezone.now() + timedelta(seconds=seconds)
        other_process.setattr(timezone, "now", lambda: elsewhere)
        turns += [new_task(conversation_id=conversation.pk) for _ in range(2)]
    turns.append(new_task(conversation_id=conversation.pk))
    for turn in turns:
        lease = claim.claim_most_urgent(Queue.API)
        assert lease is not None
        assert lease.task == turn
        finish.complete(lease, answer(), TIMINGS)
