"""Money that running tasks may cost together, and what it is counted as when they end."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from inference.api.report import report
from inference.errors import ErrorCode, InferenceError, RetryLater
from inference.lifecycle import budget, claim, finish
from inference.lifecycle.claim import Lease
from inference.models import Cost, GenerationTask, RegisteredModel
from monitoring.models import OwnerUse
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed, fresh, lose

NewTask = Callable[..., GenerationTask]
pytestmark = pytest.mark.django_db

DOLLAR = 10**9
FAILURE = InferenceError("Not now.", ErrorCode.PROVIDER_UNAVAILABLE)


@pytest.fixture
def running(new_task: NewTask) -> Callable[..., Lease]:
    """Makes claimed tasks of an owner who may spend ten dollars a month."""

    def make(owner: str = "ann", **fields: object) -> Lease:
        task = new_task(owner=owner, **fields)
        GenerationTask.objects.filter(pk=task.pk).update(max_usd_per_month=10)
        return claimed(task)

    return make


def fits(lease: Lease, nano_usd: int) -> bool:
    try:
        budget.reserve(lease, nano_usd)
    except InferenceError as error:
        return error.code != ErrorCode.BUDGET_EXCEEDED
    return True


def end(lease: Lease, cost: int | None) -> None:
    lease.cost = Cost(cost_nano_usd=cost)
    assert finish.complete(lease, answer(), TIMINGS)


def spent(owner: str = "ann") -> float:
    return OwnerUse.objects.this_month(owner)["cost_usd"]


def test_tasks_reserve_up_to_the_limit(running: Callable[..., Lease]) -> None:
    first, second, third = running(), running(), running()
    assert fits(first, 4 * DOLLAR)
    assert not fits(second, 6 * DOLLAR + 1)
    assert fits(second, 6 * DOLLAR)
    assert fits(first, 4 * DOLLAR)  # instead of what it had before
    assert not fits(third, 1)
    assert fits(running("bob"), 10 * DOLLAR)


def test_what_was_reserved_is_settled_at_the_end(running: Callable[..., Lease]) -> None:
    first, second = running(), running()
    assert fits(first, 9 * DOLLAR)
    end(first, 2 * DOLLAR)
    assert spent() == 2
    assert not fits(second, 8 * DOLLAR + 1)
    assert fits(second, 8 * DOLLAR)
    end(second, None)  # nobody knows, or it was free
    assert spent() == 2
    assert OwnerUse.objects.today("ann")["num_tasks"] == 2
    assert spent("bob") == 0


def test_lost_worker_gives_back_what_it_had_reserved(running: Callable[..., Lease]) -> None:
    lost, other = running(), running()
    assert fits(lost, 10 * DOLLAR)
    lose(lost.task)
    assert fresh(lost.task).status == "pending"
    assert fits(other, 10 * DOLLAR)
    assert not fits(lost, 1)  # whose attempt is over


def test_each_attempt_is_counted_once(running: Callable[..., Lease]) -> None:
    RegisteredModel.objects.create(name="other", provider="echo")
    lease = running(fallback_models=["other"])
    lease.cost = Cost(cost_nano_usd=DOLLAR)
    following = claim.begin_again(lease, FAILURE)
    assert following is not None
    following.cost = Cost(cost_nano_usd=2 * DOLLAR)
    assert finish.put_back(following, RetryLater(FAILURE, -1, 1), answer(), TIMINGS)
    third = claimed(fresh(lease.task))
    assert finish.fail(third, FAILURE, None, TIMINGS)  # which costs nothing, and falls back
    end(claimed(fresh(lease.task)), DOLLAR // 2)
    assert spent() == 3.5
    body = report(fresh(lease.task))
    assert body["cost_usd"] == 3.5
    assert [each["cost_usd"] for each in body["attempts"]] == [1, 2, None, 0.5]


def test_failed_and_cancelled_tasks_are_counted(running: Callable[..., Lease]) -> None:
    failed, cancelled = running(), running()
    failed.cost = cancelled.cost = Cost(cost_nano_usd=DOLLAR)
    assert finish.fail(failed, FAILURE, None, TIMINGS)
    finish.cancel(cancelled.task)
    assert finish.complete(cancelled, answer(), TIMINGS)
    assert fresh(cancelled.task).status == "cancelled"
    assert spent() == 2


def test_lost_lease_counts_nothing(running: Callable[..., Lease]) -> None:
    lease = running()
    lose(lease.task)
    lease.cost = Cost(cost_nano_usd=DOLLAR)
    assert not finish.complete(lease, answer(), TIMINGS)
    assert spent() == 0


def test_month_begins_anew(running: Callable[..., Lease]) -> None:
    lease = running()
    first = timezone.now().date().replace(day=1)
    zeros = {"num_tasks": 0, "prompt_tokens": 0, "completion_tokens": 0}
    for day, dollars in ((first - timedelta(days=1), 100), (first, 4)):
        OwnerUse.objects.create(owner="ann", day=day, cost_nano_usd=dollars * DOLLAR, **zeros)
    assert spent() == 4
    assert not fits(lease, 6 * DOLLAR + 1)
    assert fits(lease, 6 * DOLLAR)


def test_unknown_price_has_no_room(running: Callable[..., Lease]) -> None:
    with pytest.raises(InferenceError) as refusal:
        budget.reserve(running(), None)
    assert refusal.value.code == ErrorCode.BUDGET_EXCEEDED
    assert "input_cost_per_token" in refusal.value.message


@pytest.mark.django_db(transaction=True)
def test_reservations_are_exact_among_threads(running: Callable[..., Lease]) -> None:
    leases = [running() for _ in range(8)]
    results: list[bool] = []

    def reserve(lease: Lease) -> None:
        results.append(fits(lease, 3 * DOLLAR))
        connection.close()

    threads = [threading.Thread(target=reserve, args=[lease]) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 5 + [True] * 3
