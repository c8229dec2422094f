"""Which task goes first: exact priorities, fair shares, no more of one at a time than may be."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from conversations.models import Conversation
from inference import dispatch
from inference.api.submission import again, build_task
from inference.api.task_serializers import submission_validator
from inference.errors import ErrorCode, InferenceError, RetryLater
from inference.lifecycle import claim, finish, submit, sweep
from inference.lifecycle.claim import Lease
from inference.models import (
    GenerationTask,
    OwnerShare,
    Queue,
    RegisteredModel,
    owner_shares,
    queue_positions,
)
from inference.scheduling.shares import Shares
from monitoring.api.principal import Limits
from monitoring.redis.client import client
from tests.conftest import wait_until_enqueued
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed, fresh, lose

pytestmark = pytest.mark.django_db

NewTask = Callable[..., GenerationTask]

DOWN = InferenceError("The provider is down.", ErrorCode.PROVIDER_UNAVAILABLE, retryable=True)


def first() -> GenerationTask | None:
    lease = claim.claim_most_urgent(Queue.API)
    return lease.task if lease else None


def owners(number: int) -> list[str]:
    """Whose tasks are claimed, one after the other."""
    return [task.owner for task in (first() for _ in range(number)) if task]


def rows(owner: str, number: int) -> None:
    """Pending tasks in the database alone."""
    now = timezone.now()
    fields = {
        "owner": owner,
        "model_name": "echo",
        "queue": "api",
        "request": {},
    }
    GenerationTask.objects.bulk_create(
        GenerationTask(
            created_at=now + timedelta(microseconds=index),
            updated_at=now,
            enqueued_at=now,
            **fields,
        )
        for index in range(number)
    )


@pytest.fixture
def new_limited(echo: RegisteredModel, valkey: object) -> Callable[..., GenerationTask]:
    """Makes submitted tasks of an owner who may have so many running at a time."""

    def make(max_running: int, owner: str = "local", **fields: object) -> GenerationTask:
        body = {"model": "echo", "prompt": "hi"} | fields
        data = submission_validator().run_validation(body)
        task = build_task(owner, data, None, Limits(max_running_tasks=max_running))
        return submit.submit([task])[0]

    return make


@contextmanager
def undone() -> Iterator[None]:
    """What it does in the database is undone."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


# Owners share


def test_first_task_of_another_owner_is_next(new_task: NewTask) -> None:
    rows("many", 10_000)
    assert owners(2) == ["many", "many"]
    one, other = (new_task(owner=owner) for owner in ("aaron", "zoe"))
    assert queue_positions([one, other]) == {one.pk: 0, other.pk: 1}
    assert owners(4) == ["aaron", "zoe", "many", "many"]


def test_owners_alternate_by_priority(new_task: NewTask) -> None:
    for owner, priority in (("a", 1), ("a", 1), ("a", 50), ("b", 1), ("b", 50), ("a", 50)):
        new_task(owner=owner, priority=priority)
    assert owners(6) == ["a", "b", "a", "a", "b", "a"]


def test_turn_is_not_lost_by_urgent_tasks(new_task: NewTask) -> None:
    for owner in ("a", "b", "c"):
        for _ in range(3):
            new_task(owner=owner)
    order = []
    for _ in range(6):
        new_task(owner="a", priority=2)
        order += owners(2)[1:]
    assert order == ["a", "b", "c", "a", "b", "c"]


def test_turn_is_over_though_the_attempt_ends_at_once(new_task: NewTask) -> None:
    RegisteredModel.objects.create(name="local", provider="local")
    for _ in range(2):
        new_task(owner="a", fallback_models=["local"])
        new_task(owner="b")
    task = first()
    assert task
    assert finish.fail(Lease(task), DOWN, None, TIMINGS)
    assert fresh(task).queue == Queue.GPU
    assert owners(3) == ["b", "a", "b"]


def test_joining_tasks_take_turns_too(new_task: NewTask) -> None:
    RegisteredModel.objects.create(name="other", provider="echo")
    for _ in range(3):
        new_task(owner="a")
    new_task(owner="b")
    new_task(owner="c", model="other")
    session_start = timezone.now()
    leases = [claim.claim_joining("api", "echo", session_start) for _ in range(4)]
    assert [lease and lease.task.owner for lease in leases] == ["a", "b", "a", "a"]
    assert claim.claim_joining("api", "echo", session_start) is None


def test_waited_for_swap_is_made_for_the_owner_whose_turn_it_is(
    new_task: NewTask, settings: Settings
) -> None:
    settings.SWAP_WINDOW_SECONDS = 0
    RegisteredModel.objects.create(name="other", provider="echo")
    for _ in range(3):
        new_task(owner="a")
    new_task(owner="b", model="other")
    start = timezone.now()
    assert claim.claim_joining("api", "echo", start)
    assert claim.claim_joining("api", "echo", start) is None
    assert claim.claim_joining("api", "other", start)
    assert claim.claim_joining("api", "echo", start)


def test_retry_keeps_its_place_among_its_owners_tasks(new_task: NewTask) -> None:
    tasks = [new_task(owner="a") for _ in range(3)]
    other = new_task(owner="b")
    lost = first()
    assert lost == tasks[0]
    lose(tasks[0])
    assert [first() for _ in range(4)] == [other, *tasks]


def test_conversations_stay_in_order(new_task: NewTask) -> None:
    conversation = Conversation.objects.create(owner="a")
    turns = [new_task(owner="a", conversation_id=conversation.pk, priority=p) for p in (0, 50)]
    others = [new_task(owner="b", priority=50) for _ in range(2)]
    assert [first() for _ in range(3)] == [turns[0], *others]
    assert first() is None
    assert finish.complete(Lease(fresh(turns[0])), answer(), TIMINGS)
    assert first() == turns[1]


def test_owners_share_by_weight(new_task: NewTask) -> None:
    for owner, weight in (("heavy", 3.0), ("light", 1.0)):
        for _ in range(12):
            new_task(owner=owner)
        GenerationTask.objects.filter(owner=owner).update(weight=weight)
    order = []
    for _ in range(12):
        lease = claim.claim_most_urgent(Queue.API)
        assert lease is not None
        order.append(lease.task.owner)
        assert finish.complete(lease, answer(), TIMINGS)
    assert order.count("heavy") == 9


def test_owner_who_comes_back_has_no_credit(new_task: NewTask) -> None:
    for _ in range(20):
        new_task(owner="a")
    for _ in range(10):
        lease = claim.claim_most_urgent(Queue.API)
        assert lease is not None
        assert finish.complete(lease, answer(), TIMINGS)
    for _ in range(10):
        new_task(owner="b")
    assert sorted(owners(8)) == ["a"] * 4 + ["b"] * 4


def test_time_on_the_gpu_is_what_owners_share(new_task: NewTask) -> None:
    RegisteredModel.objects.create(name="local", provider="local")
    for owner in ("a", "b"):
        for _ in range(8):
            new_task(owner=owner, model="local")
    order = []
    for _ in range(8):
        lease = claim.claim_most_urgent(Queue.GPU)
        assert lease is not None
        order.append(lease.task.owner)
        if lease.task.owner == "a":  # each takes three seconds, those of b none
            lease.task.started_at = timezone.now() - timedelta(seconds=3)
        assert finish.complete(lease, answer(), TIMINGS)
    assert order.count("a") == 1


def test_purge_forgets_owners_who_have_long_had_nothing(new_task: NewTask) -> None:
    for owner in ("idle", "busy", "busy", "recent"):
        new_task(owner=owner)
    for _ in range(4):
        lease = claim.claim_most_urgent(Queue.API)
        assert lease is not None
        if lease.task.owner != "busy":
            assert finish.complete(lease, answer(), TIMINGS)
    long_ago = timezone.now() - timedelta(hours=2)
    OwnerShare.objects.exclude(owner="recent").update(active_at=long_ago)
    OwnerShare.objects.purge()
    assert {share.owner for share in OwnerShare.objects.all()} == {"busy", "recent"}


def test_waiting_raises_the_priority_in_whole_steps(new_task: NewTask, settings: Settings) -> None:
    settings.AGING_PRIORITY_PER_MINUTE = 2.0
    old, new, oldest = (new_task(priority=priority) for priority in (1.0, 2.5, 99.5))
    for task, minutes in ((old, 1.3), (new, 0.2), (oldest, 60)):
        moment = timezone.now() - timedelta(minutes=minutes)
        GenerationTask.objects.filter(pk=task.pk).update(created_at=moment)
    for _ in range(2):
        sweep.sweep()
        assert [fresh(task).priority for task in (old, new, oldest)] == [3.0, 2.5, 100.0]
    assert [first(), first(), first()] == [oldest, old, new]


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from("abcd"), st.sampled_from([0, 1, 1, 100])),
        st.tuples(st.sampled_from(["claim", "end"]), st.just(""), st.just(0)),
    ),
    max_size=40,
)


@given(steps=_STEPS)
@hypothesis_settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_claims_follow_the_rule_of_shares(
    new_task: NewTask, steps: list[tuple[str, str, int]]
) -> None:
    """Priorities are exact, an owner's tasks are in order, and owners go as `Shares` has it."""
    with undone():
        pending: list[GenerationTask] = []
        running: list[Lease] = []
        rule: defaultdict[float, Shares] = defaultdict(Shares)
        num_submitted = sum(step[0] == "submit" for step in steps)
        for kind, owner, priority in steps + num_submitted * [("claim", "", 0)]:
            if kind == "submit":
                pending.append(new_task(owner=owner, priority=priority))
            elif kind == "end" and running:
                lease = running.pop(0)
                assert finish.complete(lease, answer(), TIMINGS)
                task = lease.task
                waits = any(
                    (each.owner, each.priority) == (task.owner, task.priority) for each in pending
                )
                rule[task.priority].end(task.owner, 1.0, 1.0, waits)
            elif kind == "claim" and pending:
                positions = queue_positions(pending)
                claimed_lease = claim.claim_most_urgent(Queue.API)
                assert claimed_lease
                task = claimed_lease.task
                running.append(claimed_lease)
                assert positions[task.pk] == 0
                pending = [each for each in pending if each.pk != task.pk]
                assert not [each for each in pending if each.priority > task.priority]
                own = [each for each in pending if each.owner == task.owner]
                assert not [
                    each
                    for each in own
                    if each.priority == task.priority and each.created_at < task.created_at
                ]
                equal = {each.owner for each in pending if each.priority == task.priority}
                expected = rule[task.priority].next_owner([*equal, task.owner])
                assert task.owner == expected
                rule[task.priority].claim(task.owner)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([1, 1, 5])), max_size=25))
@hypothesis_settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_positions_are_the_order_of_claims(
    new_task: NewTask, submissions: list[tuple[str, int]]
) -> None:
    with undone():
        tasks = [new_task(owner=owner, priority=priority) for owner, priority in submissions]
        first()
        waiting = [task for task in tasks if fresh(task).status == "pending"]
        positions = queue_positions(waiting)
        assert positions == {task.pk: queue_positions([task])[task.pk] for task in waiting}
        claims = [task for task in (first() for _ in waiting) if task]
        assert [positions[task.pk] for task in claims] == list(range(len(waiting)))


def test_many_more_urgent_tasks_are_counted_once_for_all_positions(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_shares, "_COUNTED_SECONDS", 60)
    rows("other", 1200)
    task = new_task(priority=0)
    assert queue_positions([task]) == {task.pk: 1200}
    rows("other", 1)
    assert queue_positions([task]) == {task.pk: 1200}
    client().delete("cache:more_urgent:api:0.0")
    assert queue_positions([task]) == {task.pk: 1201}


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL plans by its statistics")
def test_position_is_counted_in_the_index(new_task: NewTask) -> None:
    task = new_task()
    with CaptureQueriesContext(connection) as queries:
        queue_positions([task])
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {queries[0]['sql']}")
        plan = [row[3] for row in cursor.fetchall()]
    of_tasks = [step for step in plan if "inference_generationtask" in step]
    assert of_tasks
    assert all("COVERING INDEX task_" in step for step in of_tasks), plan


# So many at a time


def test_owner_has_no_more_running_than_may_be(new_limited: NewTask, new_task: NewTask) -> None:
    tasks = [new_limited(2, priority=5) for _ in range(4)]
    other = new_task(owner="other")
    assert [first() for _ in range(4)] == [tasks[0], tasks[1], other, None]
    assert claim.claim(tasks[2].pk) is None
    assert claim.claim_joining("api", "echo", timezone.now()) is None
    assert not GenerationTask.objects.due().exists()
    assert finish.complete(Lease(fresh(tasks[1])), answer(), TIMINGS)
    assert GenerationTask.objects.due().count() == 2
    assert [first(), first()] == [tasks[2], None]


@pytest.mark.parametrize("how", ["complete", "cancel", "fail", "fall back", "put back", "lose"])
def test_end_of_a_task_enqueues_the_next_of_its_owner(new_limited: NewTask, how: str) -> None:
    RegisteredModel.objects.create(name="local", provider="local")
    fallbacks = ["local"] if how == "fall back" else []
    running = new_limited(1, fallback_models=fallbacks)
    lease = claimed(running)
    waiting = [new_limited(1), new_limited(1, model="local")]
    wait_until_enqueued()
    assert [first(), claim.claim_most_urgent(Queue.GPU)] == [None, None]
    client().flushall()
    if how == "complete":
        finish.complete(lease, answer(), TIMINGS)
    elif how == "cancel":
        finish.finish_cancelled(lease, answer(), TIMINGS)
    elif how in ("fail", "fall back"):
        finish.fail(lease, DOWN, None, TIMINGS)
    elif how == "put back":
        later = RetryLater(DOWN, seconds=60, num_retries=1)
        assert finish.put_back(lease, later, answer(), TIMINGS)
    else:
        lose(running)
    assert dispatch.waiting_messages(Queue.API)
    assert dispatch.waiting_messages(Queue.GPU) or how == "lose"
    if how in ("complete", "cancel", "fail"):
        assert waiting[0].pk in str(client().lrange("api\x06\x169", 0, -1))


def test_sweep_does_not_enqueue_what_waits_for_its_owner(new_limited: NewTask) -> None:
    claimed(new_limited(1))
    new_limited(1)
    wait_until_enqueued()
    client().flushall()
    GenerationTask.objects.update(enqueued_at=None)
    sweep.sweep()
    assert dispatch.waiting_messages(Queue.API) == 0


def test_repeated_task_has_its_owners_limit(new_limited: NewTask) -> None:
    assert again(new_limited(3)).max_running == 3
