"""The statements of the hot path: they say the same as the querysets, and values stay data."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from conversations.models import Conversation
from inference.lifecycle import claim, sql
from inference.models import GenerationTask, RegisteredModel

pytestmark = pytest.mark.django_db

NewTask = Callable[..., GenerationTask]


def test_claims_follow_the_order_of_the_queryset(new_task: NewTask) -> None:
    conversation = Conversation.objects.create(owner="local")
    now = timezone.now()
    for priority in (0, 11, 5, 10.99, 11):
        new_task(priority=priority)
    for priority in (1, 50):  # the second waits for the first
        new_task(priority=priority, conversation_id=conversation.pk)
    for seconds in (-1, 60):
        task = new_task(priority=20)
        deadline = now + timedelta(seconds=seconds)
        GenerationTask.objects.filter(pk=task.pk).update(deadline_at=deadline)
    while True:
        expected = GenerationTask.objects.due().most_urgent_first().first()
        lease = claim.claim_most_urgent("api")
        assert (lease and lease.task.pk) == (expected and expected.pk)
        if lease is None:
            break
    assert GenerationTask.objects.pending().count() == 2  # one too late, one that waits


def test_tasks_wait_on_unless_they_have_the_priority_that_their_model_asks_for(
    new_task: NewTask,
) -> None:
    RegisteredModel.objects.create(name="100% other", provider="echo")
    first, other = new_task(priority=5), new_task(model="100% other")
    lease = claim.claim_most_urgent("api", {"echo": 5.5, "gone": 101})
    assert lease is not None
    assert lease.task.pk == other.pk
    assert claim.claim_most_urgent("api", {"echo": 101}) is None
    lease = claim.claim_most_urgent("api", {"100% other": 101, "echo": 5})
    assert lease is not None
    assert lease.task.pk == first.pk


def test_task_that_pauses_is_claimed_from_its_time_on(new_task: NewTask) -> None:
    task = new_task()
    row = GenerationTask.objects.filter(pk=task.pk)
    row.update(due_at=timezone.now() + timedelta(seconds=60))
    assert not GenerationTask.objects.due().exists()
    assert claim.claim(task.pk) is None
    assert claim.claim_most_urgent("api") is None
    row.update(due_at=timezone.now() - timedelta(seconds=1))
    assert GenerationTask.objects.due().exists()
    lease = claim.claim(task.pk)
    assert lease is not None
    assert lease.task.due_at is None


def test_claim_gives_the_row_as_it_is_stored(new_task: NewTask) -> None:
    task = new_task(metadata={"a": [1, "é"]})
    lease = claim.claim(task.pk)
    assert lease is not None
    stored = GenerationTask.objects.get(pk=task.pk)
    for field in GenerationTask._meta.concrete_fields:
        assert getattr(lease.task, field.attname) == getattr(stored, field.attname), field
    assert stored.lease_until is not None
    assert timedelta(0) < stored.lease_until - timezone.now() <= timedelta(seconds=30)


def test_value_is_data_and_never_sql(new_task: NewTask) -> None:
    new_task()
    nasty = "api' OR '1'='1"
    assert sql.first_task(sql.FIRST_OF_QUEUE, queue=nasty) is None
    assert claim.claim(nasty) is None
    assert claim.claim_most_urgent("%(worker)s") is None


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL plans by its statistics")
@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (sql.FIRST_OF_QUEUE, "task_claim"),
        (sql.claim_first(), "task_claim"),
        (sql.FIRST_OF_MODEL, "task_model"),
    ],
)
def test_first_in_line_is_read_from_an_index(statement: str, index: str, db: None) -> None:
    values = {"queue": "api", "worker": "w", "model_name": "echo"}
    with CaptureQueriesContext(connection) as queries:
        sql.first_task(statement, **values)
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {queries[0]['sql']}")
        plan = [row[3] for row in cursor.fetchall()]
    assert index in str(plan)
    of_rows = [step for step in plan if step.startswith("SCAN inference_")]
    # The tasks of owners who may have so many running are counted once, in an index of their own.
    assert of_rows == ["SCAN inference_generationtask USING COVERING INDEX task_running"] * len(
        of_rows
    )
    assert plan.count("USE TEMP B-TREE FOR ORDER BY") == 1, "the owners are sorted, and no tasks"


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL plans by its statistics")
@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"owner": "local", "status": "processing"}, "task_processing"),
        ({"owner": "local", "status": "failed"}, "task_failed"),
        ({"status": "failed"}, "task_failed_of_all"),
        ({"owner": "local", "requested_model": "echo"}, "task_requested"),
    ],
)
def test_filtered_list_is_read_from_an_index(filters: dict[str, str], index: str) -> None:
    plan = GenerationTask.objects.filter(**filters).order_by("-created_at", "-id").explain()
    assert index in plan
    assert "TEMP B-TREE" not in plan
