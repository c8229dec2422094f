"""The thread that renews leases and learns of cancels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.utils import timezone

from inference.lifecycle import finish, lease_renewer, sweep
from inference.lifecycle.claim import Lease
from inference.lifecycle.lease_renewer import HeldRow
from inference.models import GenerationTask, ModelDownload, RegisteredModel
from monitoring.hardware import worker_identity
from tests.conftest import wait_until
from tests.inference.lifecycle.test_lifecycle import claimed, expire, fresh

NewTask = Callable[..., GenerationTask]
pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def held(*leases: Lease) -> Iterator[None]:
    for lease in leases:
        lease_renewer.hold(lease)
    yield
    for lease in leases:
        lease_renewer.release(lease)


def test_held_lease_is_renewed(new_task: NewTask) -> None:
    lease = claimed(new_task())
    before = lease.task.lease_until
    assert before is not None
    with held(lease):
        wait_until(lambda: (fresh(lease.task).lease_until or before) > before)
    assert not lease.lost


def test_cancel_is_learned_of(new_task: NewTask) -> None:
    lease, other = claimed(new_task()), claimed(new_task())
    with held(lease, other):
        finish.cancel(lease.task)
        wait_until(lambda: lease.cancel_requested, seconds=2)
    assert not other.cancel_requested


def test_lost_lease_is_learned_of(new_task: NewTask) -> None:
    lease = claimed(new_task())
    with held(lease):
        expire(lease.task)
        sweep.sweep()
        wait_until(lambda: lease.lost)


def test_two_attempts_in_one_process_are_told_apart(new_task: NewTask) -> None:
    lost = claimed(new_task())
    with held(lost):
        expire(lost.task)
        sweep.sweep()
        second = claimed(lost.task)
        with held(second):
            wait_until(lambda: lost.lost)
            finish.cancel(second.task)
            wait_until(lambda: second.cancel_requested)
            assert not second.lost


def test_second_attempt_stays_held_when_the_first_gives_up(new_task: NewTask) -> None:
    first = claimed(new_task())
    lease_renewer.hold(first)
    expire(first.task)
    sweep.sweep()
    second = claimed(first.task)
    with held(second):
        lease_renewer.release(first)
        finish.cancel(second.task)
        wait_until(lambda: second.cancel_requested)


def test_lease_that_is_given_back_is_not_renewed(new_task: NewTask) -> None:
    given_back, kept = claimed(new_task()), claimed(new_task())
    with held(kept):
        lease_renewer.hold(given_back)
        lease_renewer.release(given_back)
        finish.cancel(kept.task)
        finish.cancel(given_back.task)
        wait_until(lambda: kept.cancel_requested)
    assert not given_back.cancel_requested


def test_rows_of_any_kind_are_renewed(new_task: NewTask) -> None:
    model = RegisteredModel.objects.create(name="m", provider="local", status="registered")
    assert ModelDownload.start(model)
    download = ModelDownload.objects.claim_next(worker_identity.current())
    assert download is not None
    lease, row = claimed(new_task()), HeldRow(download)
    soon = timezone.now() + timedelta(seconds=1)
    for kind in (GenerationTask, ModelDownload):
        kind.objects.update(lease_until=soon)
    lease_renewer.renew([lease, row])
    lease_renewer.refresh([lease, row])
    for kind in (GenerationTask, ModelDownload):
        assert kind.objects.filter(lease_until__gt=soon).count() == 1
    assert not lease.lost
    assert not row.lost
    model.delete()
    lease_renewer.refresh([lease, row])
    assert row.lost
    assert not lease.lost


def test_database_that_is_away_is_told_of_once(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def refresh(rows: list[HeldRow]) -> None:
        tries.append(len(rows))
        raise OperationalError("nobody answers")

    lease = claimed(new_task())
    with held(lease):
        monkeypatch.setattr(lease_renewer, "refresh", refresh)
        wait_until(lambda: len(tries) >= 3)
        monkeypatch.undo()
    assert caplog.text.count("until the database answers: nobody answers") == 1
