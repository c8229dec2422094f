"""Rows of an earlier version, in flight when the service was stopped, go on after the upgrade."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from inference.encryption import decrypt, encrypt
from inference.lifecycle import sweep
from inference.models import GenerationTask, ModelDownload, RegisteredModel, WebhookDelivery

pytestmark = pytest.mark.django_db(transaction=True)

NewTask = Callable[..., GenerationTask]


def migrate_to(name: str) -> Any:
    """The models as they are after that migration of inference."""
    executor = MigrationExecutor(connection)
    executor.migrate([("inference", name)])
    return executor.loader.project_state([("inference", name)]).apps


def test_rows_in_flight_become_claimable(new_task: NewTask, dead_worker: str) -> None:
    running, pending = new_task(), new_task()
    now = timezone.now()
    later, past = now + timedelta(minutes=5), now - timedelta(minutes=5)
    old = migrate_to("0006_downloads")
    tasks = old.get_model("inference", "GenerationTask").objects
    tasks.filter(pk=running.pk).update(
        status="processing", attempt=1, worker=dead_worker, started_at=now, lease_until=later
    )
    tasks.filter(pk=pending.pk).update(rung_at=past)
    models = old.get_model("inference", "RegisteredModel").objects
    for name, worker, next_attempt_at in (
        ("held", dead_worker, later),
        ("waits", "", later),
        ("due", "", past),
        ("ended", "", None),
    ):
        model = models.create(name=name, provider="local", sealed_api_key=encrypt(name))
        fields = {"worker": worker, "next_attempt_at": next_attempt_at, "attempt": 3}
        old.get_model("inference", "ModelDownload").objects.create(model=model, **fields)
    deliveries = old.get_model("inference", "WebhookDelivery").objects
    for id_, status, next_attempt_at in (
        ("lost", "delivering", past),
        ("retried", "pending", later),
        ("delivered", "delivered", None),
    ):
        deliveries.create(
            id=id_,
            task_id=running.pk,
            status=status,
            next_attempt_at=next_attempt_at,
            num_attempts=2,
            give_up_at=later,
            created_at=past,
            log=[],
        )

    call_command("migrate", verbosity=0)

    assert GenerationTask.objects.get(pk=pending.pk).enqueued_at == past
    downloads = {each.model.name: each for each in ModelDownload.objects.all()}
    assert (downloads["held"].due_at, downloads["held"].lease_until) == (None, later)
    assert (downloads["waits"].due_at, downloads["waits"].lease_until) == (later, None)
    assert (downloads["ended"].due_at, downloads["ended"].lease_until) == (None, None)
    assert {each.attempt for each in downloads.values()} == {3}
    lost = WebhookDelivery.objects.get(pk="lost")
    assert (lost.attempt, lost.due_at, lost.lease_until) == (2, None, past)
    assert decrypt(RegisteredModel.objects.get(name="due").encrypted_api_key) == "due"
    sweep.sweep()
    assert GenerationTask.objects.get(pk=running.pk).status == "pending"
    assert {each.model.name for each in ModelDownload.objects.due()} == {"held", "due"}
    assert [each.pk for each in WebhookDelivery.objects.due()] == ["lost"]
    assert WebhookDelivery.objects.get(pk="lost").status == "pending"
    assert WebhookDelivery.objects.get(pk="retried").due_at == later
