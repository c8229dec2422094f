"""The life of a task: claims, leases, ends, repair, and what happens when two want the same."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.utils import timezone
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from conversations.models import Conversation
from inference import dispatch
from inference.api.submission import build_task
from inference.api.task_serializers import submission_validator
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import claim, finish, lease_renewer, sql, submit, sweep
from inference.lifecycle.claim import Lease
from inference.lifecycle.finish import Timings
from inference.models import (
    GenerationTask,
    OwnerShare,
    Queue,
    RegisteredModel,
    TaskAttempt,
    TaskResult,
)
from monitoring.hardware import worker_identity
from monitoring.models import OwnerUse
from monitoring.redis.client import client
from monitoring.streams import delta_stream, ends
from tests.conftest import Valkey, wait_until_enqueued

NewTask = Callable[..., GenerationTask]
TIMINGS = Timings(model_load_ms=None, ttft_ms=1.5, inference_ms=20.0)


def answer(text: str = "an answer", finish_reason: str = "stop") -> TaskResult:
    return TaskResult(
        text=text,
        finish_reason=finish_reason,
        usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cached_tokens": 0},
        model="echo",
        parsed=None,
        extra={},
    )


def claimed(task: GenerationTask) -> Lease:
    lease = claim.claim(task.pk)
    assert lease is not None
    return lease


def expire(task: GenerationTask) -> None:
    """The lease runs out, as after LEASE_SECONDS without a sign of its worker."""
    past = timezone.now() - timedelta(seconds=1)
    GenerationTask.objects.filter(pk=task.pk).update(lease_until=past)


def lose(task: GenerationTask) -> None:
    expire(task)
    sweep.sweep()


def run_in_threads(num_threads: int, target: Callable[[], None]) -> None:
    threads = [threading.Thread(target=target) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def fresh(task: GenerationTask) -> GenerationTask:
    return GenerationTask.objects.get(pk=task.pk)


def outcomes(task: GenerationTask) -> list[str]:
    return list(task.attempts.order_by("number").values_list("outcome", flat=True))


# Claims


@pytest.mark.django_db(transaction=True)
def test_task_is_claimed_by_one_of_many(new_task: NewTask) -> None:
    tasks = [new_task() for _ in range(5)]
    barrier = threading.Barrier(4)
    won: list[str] = []

    def claim_all() -> None:
        barrier.wait()
        won.extend(task.pk for task in tasks if claim.claim(task.pk))
        connection.close()

    run_in_threads(4, claim_all)
    assert sorted(won) == sorted(task.pk for task in tasks)
    assert {fresh(task).attempt for task in tasks} == {1}


@pytest.mark.django_db(transaction=True)
def test_two_workers_drain_a_queue_without_sharing_a_task(new_task: NewTask) -> None:
    for _ in range(10):
        new_task()
    barrier = threading.Barrier(2)
    won: list[str] = []

    def drain() -> None:
        barrier.wait()
        while lease := claim.claim_most_urgent(Queue.API):
            won.append(lease.task.pk)
        connection.close()

    run_in_threads(2, drain)
    assert len(won) == len(set(won)) == 10


@pytest.mark.django_db(transaction=True)
def test_ends_of_one_owner_at_once_are_all_charged(new_task: NewTask) -> None:
    leases = [claimed(new_task()) for _ in range(12)]
    barrier = threading.Barrier(4)

    def complete_some() -> None:
        barrier.wait()
        for _ in range(3):
            assert finish.complete(leases.pop(), answer(), TIMINGS)
            assert not connection.in_atomic_block
        connection.close()

    run_in_threads(4, complete_some)
    assert OwnerShare.objects.get().virtual_time == 12
    assert OwnerUse.objects.today("local")["num_tasks"] == 12
    assert TaskAttempt.objects.filter(outcome="completed").count() == 12


@pytest.mark.django_db(transaction=True)
def test_end_that_cannot_be_charged_is_undone(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = claimed(new_task())
    monkeypatch.setattr(sql, "ADD_USE", "INSERT INTO nowhere VALUES (1)")
    with pytest.raises(DatabaseError):
        finish.complete(lease, answer(), TIMINGS)
    assert fresh(lease.task).status == "processing"
    assert not lease.task.attempts.exists()
    assert not OwnerShare.objects.exclude(virtual_time=0).exists()


def test_claim_starts_the_attempt(new_task: NewTask) -> None:
    task = new_task()
    lease = claimed(task)
    row = fresh(task)
    assert (row.status, row.attempt, row.worker) == ("processing", 1, worker_identity.current())
    assert row.started_at is not None
    assert row.lease_until is not None
    assert row.lease_until > timezone.now() + timedelta(seconds=settings.LEASE_SECONDS / 2)
    assert (lease.task, lease.attempt, lease.lost) == (row, 1, False)


def test_most_urgent_goes_first_then_the_oldest(new_task: NewTask) -> None:
    tasks = [new_task(priority=priority) for priority in (1, 99.5, 99.6, 1, 0)]
    order = [claim.claim_most_urgent(Queue.API) for _ in tasks]
    assert [lease and lease.task for lease in order] == [tasks[i] for i in (2, 1, 0, 3, 4)]
    assert claim.claim_most_urgent(Queue.API) is None


def test_claim_looks_at_its_own_queue_alone(new_task: NewTask) -> None:
    new_task()
    assert claim.claim_most_urgent(Queue.GPU) is None


def test_task_past_its_deadline_is_never_started(new_task: NewTask) -> None:
    task = new_task(deadline_seconds=60)
    past = timezone.now() - timedelta(seconds=1)
    GenerationTask.objects.filter(pk=task.pk).update(deadline_at=past)
    assert claim.claim(task.pk) is None
    assert claim.claim_most_urgent(Queue.API) is None
    sweep.sweep()
    row = fresh(task)
    assert (row.status, row.error_code) == ("failed", "deadline_exceeded")
    assert row.finished_at is not None
    assert outcomes(task) == []


def test_task_started_in_time_may_end_after_its_deadline(new_task: NewTask) -> None:
    task = new_task(deadline_seconds=60)
    lease = claimed(task)
    GenerationTask.objects.filter(pk=task.pk).update(deadline_at=timezone.now())
    sweep.sweep()
    assert finish.complete(lease, answer(), TIMINGS)


def test_tasks_of_a_conversation_run_in_the_order_of_submission(new_task: NewTask) -> None:
    conversation = Conversation.objects.create(owner="local")
    first = new_task(conversation_id=conversation.pk, priority=1)
    second = new_task(conversation_id=conversation.pk, priority=100)
    assert claim.claim(second.pk) is None
    lease = claim.claim_most_urgent(Queue.API)
    assert lease is not None
    assert lease.task == first
    assert claim.claim_most_urgent(Queue.API) is None
    finish.complete(lease, answer("first answer"), TIMINGS)
    assert [m["content"] for m in claimed(second).task.messages()] == [
        *("one two three", "first answer", "one two three"),
    ]


def test_earlier_turns_are_as_urgent_as_those_that_wait_for_them(new_task: NewTask) -> None:
    one, other = (Conversation.objects.create(owner="local") for _ in range(2))
    first = new_task(conversation_id=one.pk, priority=0)
    new_task(priority=50)
    new_task(conversation_id=other.pk, priority=1)
    urgent = new_task(conversation_id=one.pk, priority=100)
    later = new_task(conversation_id=one.pk, priority=3)
    leases = [claim.claim_most_urgent("api")]
    assert [lease and lease.task.pk for lease in leases] == [first.pk]
    assert (fresh(first).priority, fresh(urgent).priority, fresh(later).priority) == (100, 100, 3)
    assert [task.priority for task in other.tasks.all()] == [1]


def test_end_of_a_task_enqueues_the_next_of_its_conversation(new_task: NewTask) -> None:
    conversation = Conversation.objects.create(owner="local")
    first, second, third = (new_task(conversation_id=conversation.pk) for _ in range(3))
    wait_until_enqueued()
    for ended, enqueued in ((first, second), (second, third)):
        client().flushall()
        finish.cancel(ended)
        [message] = client().lrange("api\x06\x169", 0, -1)
        assert enqueued.pk in message


def test_other_conversations_do_not_wait(new_task: NewTask) -> None:
    one, other = (Conversation.objects.create(owner="local") for _ in range(2))
    claimed(new_task(conversation_id=one.pk))
    claimed(new_task(conversation_id=other.pk))


# Ends


def test_complete_stores_everything(new_task: NewTask) -> None:
    task = new_task()
    lease = claimed(task)
    assert finish.complete(lease, answer(), TIMINGS)
    row = fresh(task)
    assert (row.status, row.result, row.error, row.error_code) == (
        "completed",
        answer(),
        None,
        None,
    )
    assert (row.model_load_ms, row.ttft_ms, row.inference_ms) == (None, 1.5, 20.0)
    assert row.lease_until is None
    assert row.finished_at is not None
    assert row.expires_at is not None
    time_to_live = row.expires_at - row.finished_at
    assert abs(time_to_live.total_seconds() - settings.TASK_TTL_SECONDS) < 1
    attempt = TaskAttempt.objects.get(task=task)
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, "completed", row.worker)
    assert attempt.started_at == row.started_at
    assert abs(attempt.ended_at - row.finished_at) < timedelta(seconds=1)


def test_failure_keeps_its_words_and_the_partial_text(new_task: NewTask) -> None:
    task = new_task()
    failure = InferenceError("Do this next.", ErrorCode.PROVIDER_ERROR)
    assert finish.fail(claimed(task), failure, answer("par", "error"), TIMINGS)
    row = fresh(task)
    assert (row.status, row.error, row.error_code) == ("failed", "Do this next.", "provider_error")
    assert row.result == answer("par", "error")
    assert outcomes(task) == ["failed"]


def test_failure_without_text_has_no_result(new_task: NewTask) -> None:
    task = new_task()
    failure = InferenceError("Do this next.", ErrorCode.MODEL_NOT_FOUND)
    assert finish.fail(claimed(task), failure, None, Timings())
    assert fresh(task).result is None
    assert fresh(task).ttft_ms is None


def test_cancelled_task_keeps_its_text(new_task: NewTask) -> None:
    task = new_task()
    lease = claimed(task)
    assert finish.cancel(task)
    assert finish.finish_cancelled(lease, answer("par", "cancelled"), TIMINGS)
    row = fresh(task)
    assert (row.status, row.result) == ("cancelled", answer("par", "cancelled"))
    assert outcomes(task) == ["cancelled"]


@pytest.mark.parametrize("how", ["complete", "fail"])
def test_end_that_comes_after_a_cancel_is_cancelled(new_task: NewTask, how: str) -> None:
    conversation = Conversation.objects.create(owner="local")
    task = new_task(conversation_id=conversation.pk)
    lease = claimed(task)
    assert finish.cancel(task)
    if how == "complete":
        assert finish.complete(lease, answer("all of it"), TIMINGS)
    else:
        failure = InferenceError("It broke.", ErrorCode.PROVIDER_ERROR)
        assert finish.fail(lease, failure, answer("all of it", "error"), TIMINGS)
    row = fresh(task)
    assert (row.status, row.error, row.error_code) == ("cancelled", None, None)
    assert row.result == answer("all of it", "cancelled")
    assert outcomes(task) == ["cancelled"]
    assert not conversation.messages.exists()
    assert not finish.cancel(task)


def test_end_is_told_to_the_readers(new_task: NewTask) -> None:
    task = new_task()
    lease = claimed(task)
    writer = delta_stream.DeltaWriter(task.pk, lease.attempt)
    writer.write("an answer")
    writer.flush()
    finish.complete(lease, answer(), TIMINGS)
    assert [fields for _, fields in client().xrange(ends.STREAM)] == [{"key": task.pk}]
    assert client().ttl(delta_stream.stream_key(task.pk)) > 0


def test_ended_task_ends_no_second_time(new_task: NewTask) -> None:
    task = new_task()
    lease = claimed(task)
    assert finish.complete(lease, answer("first"), TIMINGS)
    failure = InferenceError("Too late.", ErrorCode.TIMEOUT)
    assert not finish.complete(lease, answer("second"), TIMINGS)
    assert not finish.fail(lease, failure, None, TIMINGS)
    assert not finish.finish_cancelled(lease, answer("third"), TIMINGS)
    assert not finish.cancel(task)
    row = fresh(task)
    assert (row.status, row.result, row.error) == ("completed", answer("first"), None)
    assert outcomes(task) == ["completed"]


def test_lost_lease_does_not_overwrite_result(new_task: NewTask) -> None:
    task = new_task()
    lost = claimed(task)
    lose(task)
    winner = claimed(task)
    assert winner.attempt == 2
    assert not finish.complete(lost, answer("of the lost"), TIMINGS)
    assert fresh(task).status == "processing"
    assert finish.complete(winner, answer("of the winner"), TIMINGS)
    assert not finish.complete(lost, answer("of the lost"), TIMINGS)
    assert fresh(task).result == answer("of the winner")
    assert outcomes(task) == ["lost", "completed"]


def test_turn_is_saved_with_the_answer(new_task: NewTask) -> None:
    conversation = Conversation.objects.create(owner="local")
    task = new_task(conversation_id=conversation.pk)
    finish.complete(claimed(task), answer(), TIMINGS)
    saved = list(conversation.messages.order_by("id").values_list("role", "content"))
    assert saved == [("user", "one two three"), ("assistant", "an answer")]


def test_of_an_explicit_history_the_last_message_is_saved(
    echo: RegisteredModel, valkey: Valkey
) -> None:
    conversation = Conversation.objects.create(owner="local")
    messages = [{"role": "user", "content": "old"}, {"role": "user", "content": "new"}]
    body = {"model": "echo", "messages": messages, "conversation_id": conversation.pk}
    task = build_task("local", submission_validator().run_validation(body), None)
    submit.submit([task])
    lease = claimed(task)
    assert lease.task.messages() == messages
    finish.complete(lease, answer(), TIMINGS)
    assert list(conversation.messages.values_list("content", flat=True)) == ["new", "an answer"]


@pytest.mark.parametrize("how", ["not asked", "failed", "cancelled", "lost"])
def test_turn_is_not_saved_otherwise(new_task: NewTask, how: str) -> None:
    conversation = Conversation.objects.create(owner="local")
    save = how != "not asked"
    task = new_task(conversation_id=conversation.pk, save_to_conversation=save)
    lease = claimed(task)
    if how == "lost":
        lose(task)
    if how == "failed":
        failure = InferenceError("It broke.", ErrorCode.PROVIDER_ERROR)
        finish.fail(lease, failure, answer(), TIMINGS)
    elif how == "cancelled":
        finish.finish_cancelled(lease, answer(), TIMINGS)
    else:
        finish.complete(lease, answer(), TIMINGS)
    assert not conversation.messages.exists()


def test_turn_that_cannot_be_saved_ends_nothing(
    new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation.objects.create(owner="local")
    task = new_task(conversation_id=conversation.pk)
    lease = claimed(task)
    monkeypatch.setattr(Conversation, "save", _refuse)
    with pytest.raises(RuntimeError), transaction.atomic():
        finish.complete(lease, answer(), TIMINGS)
    assert fresh(task).status == "processing"
    assert not conversation.messages.exists()
    assert outcomes(task) == []


def _refuse(*_: object, **__: object) -> None:
    raise RuntimeError("the disk is full")


# Leases


def test_renewing_prolongs_the_leases_of_this_process(new_task: NewTask) -> None:
    mine, theirs = (claimed(new_task()) for _ in range(2))
    soon = timezone.now() + timedelta(seconds=1)
    GenerationTask.objects.update(lease_until=soon)
    GenerationTask.objects.filter(pk=theirs.task.pk).update(worker="elsewhere:1")
    lease_renewer.renew([mine, theirs])
    renewed, left = fresh(mine.task).lease_until, fresh(theirs.task).lease_until
    assert renewed is not None
    assert renewed > soon
    assert left == soon


def test_refresh_tells_of_a_cancel(new_task: NewTask) -> None:
    lease, other = (claimed(new_task()) for _ in range(2))
    finish.cancel(lease.task)
    lease_renewer.refresh([lease, other])
    assert (lease.cancel_requested, lease.lost) == (True, False)
    assert (other.cancel_requested, other.lost) == (False, False)


@pytest.mark.parametrize("how", ["taken back", "claimed again", "deleted", "ended"])
def test_refresh_tells_of_a_lost_lease(new_task: NewTask, how: str) -> None:
    lease = claimed(new_task())
    if how == "ended":
        finish.complete(lease, answer(), TIMINGS)
    elif how == "deleted":
        GenerationTask.objects.all().delete()
    else:
        lose(lease.task)
    if how == "claimed again":
        claimed(lease.task)
    lease_renewer.refresh([lease])
    assert lease.lost


# Sweep


def test_lease_that_ran_out_puts_the_task_back_and_enqueues_it(new_task: NewTask) -> None:
    task = new_task()
    claimed(task)
    wait_until_enqueued()
    client().flushall()
    lose(task)
    row = fresh(task)
    assert (row.status, row.worker, row.started_at, row.lease_until) == ("pending", "", None, None)
    assert row.enqueued_at is not None
    assert dispatch.waiting_messages(Queue.API) == 1
    assert outcomes(task) == ["lost"]


def test_lease_that_holds_is_left_alone(new_task: NewTask) -> None:
    task = new_task()
    claimed(task)
    before = fresh(task).lease_until
    sweep.sweep()
    assert (fresh(task).status, fresh(task).lease_until) == ("processing", before)


def test_last_attempt_lost_fails_the_task(new_task: NewTask) -> None:
    task = new_task()
    for _ in range(settings.MAX_ATTEMPTS):
        claimed(task)
        lose(task)
    row = fresh(task)
    assert (row.status, row.error_code, row.attempt) == ("failed", "worker_lost", 10)
    assert row.error is not None
    assert "10 times" in row.error
    assert outcomes(task) == 10 * ["lost"]
    assert row.expires_at is not None


def test_lost_task_that_was_to_be_cancelled_is_cancelled(new_task: NewTask) -> None:
    task = new_task()
    claimed(task)
    finish.cancel(task)
    lose(task)
    assert fresh(task).status == "cancelled"


@contextmanager
def worker_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this host that could be a worker."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_tasks_of_a_dead_process_are_taken_back_at_once(new_task: NewTask) -> None:
    with worker_process() as process:
        task, of_other_host = new_task(), new_task()
        here = worker_identity.of_pid(process.pid)
        for one, worker in ((task, here), (of_other_host, f"elsewhere:{process.pid}:1")):
            claimed(one)
            GenerationTask.objects.filter(pk=one.pk).update(worker=worker)
        sweep.sweep()
        assert fresh(task).status == "processing"
    sweep.sweep()
    assert fresh(task).status == "pending"
    assert fresh(of_other_host).status == "processing"


def enqueued_long_ago(task: GenerationTask) -> None:
    past = timezone.now() - timedelta(seconds=settings.RING_AGAIN_SECONDS + 1)
    GenerationTask.objects.filter(pk=task.pk).update(enqueued_at=past)


def test_task_that_was_never_enqueued_is_enqueued(new_task: NewTask) -> None:
    waiting, unsent = new_task(), new_task()
    wait_until_enqueued()
    GenerationTask.objects.filter(pk=unsent.pk).update(enqueued_at=None)
    sweep.sweep()
    assert dispatch.waiting_messages(Queue.API) == 3
    assert fresh(unsent).enqueued_at is not None
    assert fresh(waiting).enqueued_at == waiting.enqueued_at


def test_lost_message_is_sent_again(new_task: NewTask) -> None:
    lost, recent = new_task(), new_task()
    enqueued_long_ago(lost)
    wait_until_enqueued()
    client().flushall()
    sweep.sweep()
    assert dispatch.waiting_messages(Queue.API) == 1
    assert fresh(recent).enqueued_at == recent.enqueued_at
    sweep.sweep()
    assert dispatch.waiting_messages(Queue.API) == 1


def test_nothing_is_sent_twice_while_messages_wait(new_task: NewTask) -> None:
    for _ in range(3):
        enqueued_long_ago(new_task())
    wait_until_enqueued()
    sweep.sweep()
    assert dispatch.waiting_messages(Queue.API) == 3


def test_sweep_enqueues_only_what_can_be_claimed(new_task: NewTask) -> None:
    conversation = Conversation.objects.create(owner="local")
    for _ in range(3):
        enqueued_long_ago(new_task(conversation_id=conversation.pk))
    wait_until_enqueued()
    client().flushall()
    sweep.sweep()
    assert dispatch.waiting_messages(Queue.API) == 1


# Purge and delete


def test_purge_takes_tasks_past_their_time(new_task: NewTask) -> None:
    old, young, pending = new_task(), new_task(), new_task()
    for task in (old, young):
        writer = delta_stream.DeltaWriter(task.pk, 1)
        writer.write("an answer")
        writer.flush()
        finish.complete(claimed(task), answer(), TIMINGS)
    past = timezone.now() - timedelta(seconds=1)
    GenerationTask.objects.filter(pk=old.pk).update(expires_at=past)
    client().xadd(f"task:{old.pk}:log", {"message": "m"})
    assert finish.purge() == 1
    assert set(GenerationTask.objects.all()) == {young, pending}
    assert client().keys(f"*{old.pk}*") == []
    assert client().exists(delta_stream.stream_key(young.pk))
    assert not TaskAttempt.objects.filter(task_id=old.pk).exists()
    assert finish.purge() == 0


@pytest.mark.django_db(transaction=True)
def test_ended_task_can_be_deleted_without_redis(new_task: NewTask, valkey: Valkey) -> None:
    task = new_task()
    finish.cancel(task)
    valkey.stop()
    assert finish.delete(task)
    assert not GenerationTask.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_whole_life_goes_on_without_redis(new_task: NewTask, valkey: Valkey) -> None:
    valkey.stop()
    started = time.monotonic()
    task = new_task()
    assert time.monotonic() - started < 2
    assert finish.complete(claimed(task), answer(), TIMINGS)
    assert fresh(task).status == "completed"


# Whatever happens, in whatever order


class TaskLife(RuleBasedStateMachine):
    """Some workers, owners and sweeps at work on a few tasks; the database must stay right."""

    def __init__(self) -> None:
        super().__init__()
        self._rollback = transaction.atomic()
        self._rollback.__enter__()
        self.tasks: list[str] = []
        self.leases: list[Lease] = []
        self.ends: dict[str, tuple[str, Any]] = {}
        self.attempts: dict[str, int] = {}

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self._rollback.__exit__(None, None, None)

    @rule(priority=st.sampled_from([0, 1, 100]))
    def submit(self, priority: float) -> None:
        body = {"model": "echo", "prompt": "hi", "priority": priority}
        task = build_task("local", submission_validator().run_validation(body), None)
        submit.submit([task])
        self.tasks.append(task.pk)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(self.tasks))
        pending = GenerationTask.objects.pending().filter(pk=task_id).exists()
        lease = claim.claim(task_id)
        assert (lease is not None) == pending
        if lease:
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), how=st.sampled_from(["complete", "fail", "cancel"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        row = fresh(lease.task)
        holds = row.status == "processing" and row.attempt == lease.attempt
        result = answer(f"{how} {lease.attempt}")
        if how == "complete":
            won = finish.complete(lease, result, TIMINGS)
        elif how == "fail":
            failure = InferenceError("It broke.", ErrorCode.PROVIDER_ERROR)
            won = finish.fail(lease, failure, result, TIMINGS)
        else:
            won = finish.finish_cancelled(lease, result, TIMINGS)
        assert won == holds
        if won and row.cancel_requested:
            assert fresh(row).status == "cancelled"

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = GenerationTask.objects.get(pk=data.draw(st.sampled_from(self.tasks)))
        had_ended = task.has_ended
        assert finish.cancel(task) == (not had_ended)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def lose_worker(self, data: st.DataObject) -> None:
        processing = GenerationTask.objects.filter(status="processing")
        past = timezone.now() - timedelta(seconds=1)
        processing.filter(pk=data.draw(st.sampled_from(self.tasks))).update(lease_until=past)

    @rule()
    def sweep(self) -> None:
        sweep.sweep()
        assert not GenerationTask.objects.filter(lease_until__lte=timezone.now()).exists()

    @invariant()
    def ended_stays_as_it_ended(self) -> None:
        for task in GenerationTask.objects.exclude(status__in=GenerationTask.UNFINISHED):
            end = (task.status, task.result)
            assert self.ends.setdefault(task.pk, end) == end
            assert task.finished_at is not None
            assert task.expires_at is not None
        assert set(self.ends) <= set(self.tasks)
        unfinished = GenerationTask.objects.unfinished().filter(pk__in=self.ends)
        assert not unfinished.exists()

    @invariant()
    def attempts_only_grow_and_never_past_the_limit(self) -> None:
        for task in GenerationTask.objects.all():
            assert self.attempts.get(task.pk, 0) <= task.attempt <= settings.MAX_ATTEMPTS
            self.attempts[task.pk] = task.attempt
            numbers = list(task.attempts.order_by("number").values_list("number", flat=True))
            running = task.status == "processing"
            assert numbers == list(range(1, task.attempt + (0 if running else 1)))


def test_task_ends_once_whatever_happens(echo: RegisteredModel, valkey: Valkey) -> None:
    run_machine(
        TaskLife,
        settings=hypothesis_settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
