"""What keys may use: requests a second, tasks, priorities, tokens a day."""

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from inference.lifecycle import finish, sql
from inference.models import GenerationTask, RegisteredModel
from monitoring.api.principal import Limits, Principal, Scope
from monitoring.redis.client import client as redis_client
from sopllm.access.rate_limit import Allowance, RateLimiter
from tests.conftest import Valkey, client_of
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed
from tests.sopllm.access.clients import bearer, close_to_strangers, key_of, request
from tests.sopllm.access.test_identity import session_cookie
from tests.sopllm.test_handler import talk

NewTask = Callable[..., GenerationTask]

TASKS = "/api/v1/tasks"
BODY = {"model": "echo", "prompt": "one"}


def take(principal: Principal) -> Allowance | None:
    """Count a request."""

    async def once() -> Allowance | None:
        limiter = RateLimiter()
        try:
            return await limiter.take(principal)
        finally:
            await limiter.close()

    return asyncio.run(once())


def limited(**limits: float) -> Principal:
    return Principal(
        name="key",
        owner="ann",
        scopes=frozenset({Scope.TASKS}),
        limits=Limits(**limits),  # type: ignore[arg-type]
        key_digest="digest",
    )


def submit(api: APIClient, **fields: object) -> int:
    return int(api.post(TASKS, BODY | fields, format="json").status_code)


def test_priority_has_a_limit(new_task: NewTask) -> None:
    api = client_of(limited(max_priority=5))
    assert submit(api, priority=5) == 201
    response = api.post(TASKS, BODY | {"priority": 5.5}, format="json")
    assert response.status_code == 400
    assert list(response.json()["details"]) == ["priority"]


def test_pending_tasks_have_a_limit_and_a_batch_is_all_or_none(new_task: NewTask) -> None:
    api = client_of(limited(max_pending_tasks=2))
    new_task(owner="bob")
    assert submit(api) == 201
    batch = api.post(f"{TASKS}/batch", [BODY, BODY], format="json")
    assert batch.status_code == 429
    assert batch.json()["error"] == "rate_limited"
    assert int(batch["Retry-After"]) > 0
    assert submit(api) == 201
    assert submit(api) == 429
    finish.cancel(GenerationTask.objects.filter(owner="ann").latest("created_at"))
    assert submit(api) == 201
    assert GenerationTask.objects.pending().owned_by("ann").count() == 2


@pytest.mark.django_db(transaction=True)
def test_limit_of_pending_tasks_is_exact_among_threads(new_task: NewTask) -> None:
    new_task(owner="bob")
    statuses: list[int] = []

    def race() -> None:
        statuses.append(submit(client_of(limited(max_pending_tasks=3))))
        connection.close()

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 3 + [429] * 5


def test_limit_of_running_tasks_goes_with_the_task(new_task: NewTask) -> None:
    new_task(owner="bob")
    assert submit(client_of(limited(max_running_tasks=2))) == 201
    assert GenerationTask.objects.get(owner="ann").max_running == 2


def test_tokens_of_a_day_have_a_limit(new_task: NewTask) -> None:
    api = client_of(limited(max_tokens_per_day=6))
    for status in (201, 201):  # each takes 3 + 2 tokens
        assert submit(api) == status
        finish.complete(claimed(GenerationTask.objects.latest("created_at")), answer(), TIMINGS)
    response = api.post(TASKS, BODY, format="json")
    assert response.status_code == 429
    assert 0 < int(response["Retry-After"]) <= 86_400
    me = api.get("/api/v1/keys/me").json()
    assert me["today"]["num_tasks"] == 2
    assert me["limits"]["max_tokens_per_day"] == 6


def test_money_of_a_month_has_a_limit(new_task: NewTask) -> None:
    RegisteredModel.objects.create(name="cloud", provider="openai", config={"model_name": "gpt"})
    vectors = {"model_name": "openai/vectors"}
    RegisteredModel.objects.create(name="vectors", provider="embedding", config=vectors)
    rich, poor = (client_of(limited(max_usd_per_month=dollars)) for dollars in (2.5, 2.0))
    assert submit(poor, model="cloud") == 201
    assert GenerationTask.objects.latest("created_at").max_usd_per_month == 2
    sql.add_use("ann", cost_nano_usd=2 * 10**9)
    sql.add_use("bob", cost_nano_usd=10**12)
    assert submit(rich, model="cloud") == 201
    assert submit(poor) == 201  # a model that costs nothing
    task = poor.post(TASKS, BODY | {"model": "cloud"}, format="json")
    texts = {"model_name": "vectors", "texts": ["one"]}
    for response in (task, poor.post("/api/v1/embeddings", texts, format="json")):
        assert (response.status_code, response.json()["error"]) == (429, "rate_limited")
        assert response.json()["details"] == {"limit": "max_usd_per_month"}
        again_at = timezone.now() + timedelta(seconds=int(response["Retry-After"]))
        month_later = timezone.now().replace(day=1) + timedelta(days=32)
        assert (again_at.day, again_at.month) == (1, month_later.month)
    me = poor.get("/api/v1/keys/me").json()
    assert me["this_month"]["cost_usd"] == 2
    assert me["limits"]["max_usd_per_month"] == 2
    assert submit(client_of(limited()), model="cloud") == 201


@pytest.mark.parametrize(("rate", "burst"), [(4, 4), (0.5, 1), (2.5, 2)])
def test_requests_pass_at_their_rate(valkey: Valkey, rate: float, burst: int) -> None:
    principal = limited(requests_per_second=rate)
    allowances = [take(principal) for _ in range(burst + 1)]
    assert [each.remaining for each in allowances if each] == [*range(burst - 1, -1, -1), 0]
    last = allowances[-1]
    assert last is not None
    assert 0 < last.wait_seconds <= 1 / rate
    # As if the key had waited for so long.
    paid_off = float(redis_client().get("rate:digest"))
    redis_client().set("rate:digest", paid_off - last.wait_seconds)
    assert take(principal).wait_seconds == 0  # type: ignore[union-attr]


def test_without_redis_everybody_is_let_in(valkey: Valkey) -> None:
    valkey.stop()
    assert take(limited(requests_per_second=1)) is None


def test_all_are_let_in_at_once_while_redis_hangs(valkey: Valkey, settings: Settings) -> None:
    settings.REDIS_TIMEOUT_SECONDS = 0.2

    async def many() -> list[Allowance | None]:
        limiter = RateLimiter()
        principal = limited(requests_per_second=1)
        assert await limiter.take(principal)
        with valkey.hanging():
            found = await asyncio.gather(*(limiter.take(principal) for _ in range(300)))
        assert await limiter.take(principal)
        await limiter.close()
        return found

    # One after the other they would take longer than a test may.
    assert asyncio.run(many()) == [None] * 300


@pytest.mark.django_db(transaction=True)
def test_key_has_the_default_limits_unless_it_says_others(
    valkey: Valkey, settings: Settings
) -> None:
    close_to_strangers(settings)
    defaults = {"max_pending_tasks": 7, "max_priority": 5.0, "max_open_streams": 0}
    settings.DEFAULT_LIMITS = settings.DEFAULT_LIMITS | defaults
    own = {"max_priority": 50.0, "max_open_streams": 3}
    unset = dict.fromkeys(Limits.__dataclass_fields__)
    for headers, limits in (
        (bearer(key_of("ann")), unset | defaults),
        (bearer(key_of("ann", **own)), unset | defaults | own),
        (session_cookie(username="bob"), unset | defaults),
    ):
        assert request("GET", "/api/v1/keys/me", headers=headers).json()["limits"] == limits


@pytest.mark.django_db(transaction=True)
def test_users_have_a_rate_each(valkey: Valkey) -> None:
    ann, bob = (
        Principal(name=name, owner=name, scopes=frozenset(), limits=Limits(0.01), session_key=name)
        for name in ("ann", "bob")
    )
    waits = [take(each).wait_seconds for each in (ann, bob, ann)]  # type: ignore[union-attr]
    assert [wait > 0 for wait in waits] == [False, False, True]


@pytest.mark.django_db(transaction=True)
def test_answers_tell_the_rate(valkey: Valkey) -> None:
    headers = bearer(key_of("ann", requests_per_second=0.01))

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get("/api/v1/keys/me", headers=headers) for _ in range(2)]

    first, second = talk(conversation)
    assert (first.status_code, first.headers["ratelimit-remaining"]) == (200, "0")
    assert (second.status_code, second.headers["ratelimit-limit"]) == (429, "0.01")
    assert second.json()["error"] == "rate_limited"
    assert 0 < int(second.headers["retry-after"]) <= 100
