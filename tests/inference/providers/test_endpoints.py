"""Models with several endpoints: stand-ins that slow down, fail and come back."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from pytest_django import Settings
from rest_framework.test import APIClient

from inference import encryption
from inference.errors import ErrorCode
from inference.models import GenerationTask, RegisteredModel, TaskAttempt
from inference.providers.cloud import retries
from inference.providers.cloud.endpoints import pool as endpoint_pool
from inference.providers.cloud.endpoints import reports
from inference.providers.cloud.endpoints.endpoint import Endpoint, Health
from inference.providers.cloud.endpoints.engine_load import BatchGate, EngineLoad, parse
from inference.providers.cloud.endpoints.latency import Latency
from inference.providers.cloud.endpoints.limit import AdaptiveLimit
from inference.providers.cloud.endpoints.pools import pool_of
from inference.registry import registration
from tests.cloud_server import KEY, CloudServer, Fault
from tests.conftest import wait_until
from tests.inference.api.test_models import MODELS
from tests.inference.api.test_models import register as register_by_api
from tests.inference.api.test_tasks import assert_error
from tests.inference.execution.cloud_sessions import execute, wait
from tests.inference.lifecycle.test_lifecycle import claimed, fresh
from tests.inference.providers.test_cloud_provider import answer, failure, request

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]

NewTask = Callable[..., GenerationTask]
NewModel = Callable[..., RegisteredModel]
TEXT = "one two three four five six"


@pytest.fixture(scope="module")
def running_servers() -> Iterator[list[CloudServer]]:
    with CloudServer() as first, CloudServer(num_slots=4) as second:
        yield [first, second]


@pytest.fixture
def servers(running_servers: list[CloudServer]) -> list[CloudServer]:
    for server in running_servers:
        server.faults.clear()
        server.calls.clear()
        server.delay_ms = 0
        server.retry_after, server.is_down = None, False
    return running_servers


@pytest.fixture
def model(servers: list[CloudServer], monkeypatch: pytest.MonkeyPatch) -> NewModel:
    """Registers a model with the endpoints `a` and `b`; retries and probes come almost at once."""
    monkeypatch.setattr(retries, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(endpoint_pool, "_FIRST_PROBE_SECONDS", 0.01)
    monkeypatch.setattr(endpoint_pool, "_READ_LOAD_SECONDS", 0.01)

    def make(*own: dict[str, Any], **config: Any) -> RegisteredModel:
        fields = own or ({}, {})
        endpoints = [
            {"name": name, "base_url": server.openai_url} | each
            for name, server, each in zip("ab", servers, fields, strict=True)
        ]
        defaults = {"model_name": "llama-3", "api_key": KEY, "timeout": 20}
        config = defaults | {"endpoints": endpoints} | config
        return registration.register("several", "openai_compatible", config)

    return make


def at(model: RegisteredModel, name: str) -> Endpoint:
    return next(each for each in pool_of(model).endpoints if each.name == name)


def asked(servers: list[CloudServer]) -> list[int]:
    return [len(server.calls) for server in servers]


def test_failed_call_goes_to_another_endpoint_and_is_no_retry(
    model: NewModel, servers: list[CloudServer]
) -> None:
    both = model(max_retries=0)
    for fault in (Fault.UNAVAILABLE, Fault.DISCONNECT, Fault.BAD_GATEWAY):
        for server in servers:
            server.faults.extend([fault])
            assert answer(both)[0] == TEXT
            server.faults.clear()
    assert sum(asked(servers)) >= 9


@pytest.mark.parametrize("fault", [Fault.RATE_LIMITED, Fault.UNAUTHORIZED, Fault.NO_SUCH_MODEL])
def test_what_one_endpoint_refuses_another_may_answer(
    model: NewModel, servers: list[CloudServer], fault: Fault
) -> None:
    both = model({"weight": 100}, {"weight": 0.01}, max_retries=0)
    servers[0].faults.append(fault)
    text, progress = answer(both)
    assert (text, progress.endpoint) == (TEXT, "b")
    assert asked(servers) == [1, 1]


def test_fault_of_the_request_is_asked_once(model: NewModel, servers: list[CloudServer]) -> None:
    both = model()
    for server in servers:
        server.faults.append(Fault.INVALID)
    assert failure(both).code == ErrorCode.INVALID_REQUEST
    assert sum(asked(servers)) == 1


def test_all_endpoints_fail_like_one_model(model: NewModel, servers: list[CloudServer]) -> None:
    both = model(max_retries=1)
    for server in servers:
        server.is_down = True
    assert failure(both).code == ErrorCode.PROVIDER_UNAVAILABLE
    assert asked(servers) == [2, 2]


def test_text_that_was_told_makes_the_next_call_another_attempt(
    model: NewModel, servers: list[CloudServer], new_task: NewTask
) -> None:
    both = model({"weight": 100}, {"weight": 0.01})
    servers[0].faults.append(Fault.CUT)
    task = new_task(model=both.name, prompt=TEXT)
    execute(claimed(task))
    task = fresh(task)
    assert task.result is not None
    assert (task.status, task.attempt, task.result["text"]) == ("completed", 2, TEXT)


def test_answer_that_breaks_off_at_one_endpoint_does_not_open_the_circuit_of_all(
    model: NewModel, servers: list[CloudServer], new_task: NewTask, settings: Settings
) -> None:
    settings.CIRCUIT_FAILURES = 1
    both = model({"weight": 100}, {"weight": 0.01})
    servers[0].faults.append(Fault.CUT)
    task = new_task(model=both.name, prompt=TEXT)
    execute(claimed(task))
    assert fresh(task).status == "completed"


def test_attempts_say_which_endpoint_was_asked(
    model: NewModel, servers: list[CloudServer], new_task: NewTask, api: APIClient
) -> None:
    both = model({"weight": 100}, {"weight": 0.01})
    servers[0].faults.append(Fault.UNAVAILABLE)
    task = new_task(model=both.name, prompt=TEXT)
    execute(claimed(task))
    assert TaskAttempt.objects.get(task=task).endpoint == "b"
    [attempt] = api.get(f"/api/v1/tasks/{task.pk}/report").json()["attempts"]
    assert (attempt["number"], attempt["endpoint"]) == (1, "b")


def test_dead_endpoint_is_left_alone_until_it_answers_again(
    model: NewModel, servers: list[CloudServer]
) -> None:
    both = model({"weight": 100}, {"weight": 0.01}, max_retries=0)
    servers[0].is_down = True
    for _ in range(5):
        assert answer(both)[1].endpoint == "b"
    assert asked(servers)[0] == 3
    assert at(both, "a").health == Health.DEAD
    servers[0].is_down = False
    wait_until(lambda: at(both, "a").health == Health.HEALTHY)
    assert answer(both)[1].endpoint == "a"


def test_endpoint_that_asks_for_a_pause_gets_it(
    model: NewModel, servers: list[CloudServer]
) -> None:
    both = model({"weight": 100}, {"weight": 0.01}, max_retries=0)
    servers[0].retry_after = "30"
    servers[0].faults.append(Fault.RATE_LIMITED)
    for _ in range(4):
        assert answer(both)[1].endpoint == "b"
    assert asked(servers) == [1, 4]


def test_conversation_stays_with_its_endpoint(model: NewModel, servers: list[CloudServer]) -> None:
    both = model()
    by_conversation = {
        number: {answer(both, conversation_id=f"conv_{number}")[1].endpoint for _ in range(3)}
        for number in range(12)
    }
    assert all(len(endpoints) == 1 for endpoints in by_conversation.values())
    assert set.union(*by_conversation.values()) == {"a", "b"}


def test_prompts_that_begin_alike_go_where_that_was_read(
    model: NewModel, servers: list[CloudServer]
) -> None:
    both = model()
    for number in range(4):
        system = {"role": "system", "content": "Be brief. " * 120}
        user = {"role": "user", "content": f"question {number}"}
        answer(both, messages=[system, user])
    assert sorted(asked(servers)) == [0, 4]


def test_one_conversation_overloads_no_endpoint(
    model: NewModel, servers: list[CloudServer]
) -> None:
    both = model()
    for server in servers:
        server.delay_ms = 300
    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(lambda _: answer(both, conversation_id="conv_1")[1], range(8)))
    assert max(Counter(progress.endpoint for progress in told).values()) <= 5


def test_slow_endpoint_gets_few_calls(model: NewModel, servers: list[CloudServer]) -> None:
    both = model()
    servers[0].delay_ms, servers[1].delay_ms = 900, 30
    for number in range(4):
        answer(both, conversation_id=f"conv_{number}")
    before = asked(servers)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: answer(both, conversation_id=f"conv_{n}"), range(40)))
    slow, fast = (now - then for now, then in zip(asked(servers), before, strict=True))
    assert slow + fast == 40
    assert slow < fast / 4


def test_weights_share_the_calls(model: NewModel, servers: list[CloudServer]) -> None:
    both = model({"weight": 3}, {"weight": 1})
    keys = [f"conv_{number}" for number in range(2000)]
    pool = pool_of(both)
    chosen = Counter(max(pool.endpoints, key=lambda each: each.affinity(key)).name for key in keys)
    assert 0.7 < chosen["a"] / len(keys) < 0.8


def test_calls_wait_for_room_and_the_most_urgent_goes_first(model: NewModel) -> None:
    pool = pool_of(model({"max_concurrency": 1}, {"max_concurrency": 1}))
    begun: list[str] = []

    async def begin_all() -> None:
        is_over = asyncio.Event()

        async def call(name: str, priority: float, end: asyncio.Event) -> None:
            async with pool.call(request(priority=priority)):
                begun.append(name)
                await end.wait()

        first_is_over = asyncio.Event()
        ends = {"first": first_is_over, "second": is_over, "late": is_over, "urgent": is_over}
        calls = [
            asyncio.create_task(call(name, 9.0 if name == "urgent" else 1.0, end))
            for name, end in ends.items()
        ]
        await asyncio.sleep(0)
        calls[2].cancel()
        calls.append(asyncio.create_task(call("later", 1.0, is_over)))
        await asyncio.sleep(0)
        assert begun == ["first", "second"]
        first_is_over.set()
        await calls[0]
        is_over.set()
        await asyncio.gather(*calls, return_exceptions=True)

    wait(begin_all())
    assert begun == ["first", "second", "urgent", "later"]


def test_keys_of_endpoints_go_there_alone_and_are_never_shown(
    api: APIClient, servers: list[CloudServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_API_KEY", KEY)
    own = {"api_key": "sk-secret-of-a-0123456789"}
    endpoints = [
        {"name": "a", "base_url": servers[0].openai_url, **own},
        {"name": "b", "base_url": servers[1].openai_url, "api_key_env_var": "OTHER_API_KEY"},
    ]
    told = register_by_api(
        api, "keys", "openai_compatible", model_name="m", endpoints=endpoints, max_retries=0
    )
    assert told.status_code == 201
    assert "sk-secret" not in told.content.decode() + api.get(MODELS).content.decode()
    sources = {each["name"]: each["api_key_source"] for each in told.json()["endpoints"]}
    assert sources == {"a": "registration", "b": "environment"}
    row = RegisteredModel.objects.get()
    assert "sk-secret" not in json.dumps([row.config, row.encrypted_endpoint_keys])
    for number in range(8):
        assert answer(row, conversation_id=str(number))[1].endpoint == "b"
    assert {call.headers["Authorization"] for call in servers[0].calls} == {
        f"Bearer {own['api_key']}"
    }
    assert {call.headers["Authorization"] for call in servers[1].calls} == {f"Bearer {KEY}"}


def test_keys_of_endpoints_are_encrypted_anew(
    model: NewModel, settings: Any, servers: list[CloudServer]
) -> None:
    both = model({"api_key": "key-of-a"}, {})
    settings.ENCRYPTION_KEYS = ["a new key of ours"]
    output = StringIO()
    call_command("rotate_keys", stdout=output)
    assert output.getvalue() == "2 keys of models are encrypted anew.\n"
    settings.SECRET_KEY = "another"
    both.refresh_from_db()
    assert encryption.decrypt(both.encrypted_endpoint_keys["a"]) == "key-of-a"


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"endpoints": []}, "endpoints"),
        ({"endpoints": [{"name": "a"}]}, "base_url"),
        ({"endpoints": [{"base_url": "http://x/v1", "weight": 0}]}, "weight"),
        ({"endpoints": [{"base_url": "http://u:p@x/v1"}]}, "base_url"),
        ({"endpoints": [{"base_url": "http://x/v1"}, {"base_url": "http://x/v2"}]}, "host"),
        ({"endpoints": [{"base_url": "http://169.254.169.254/v1"}]}, "credentials"),
        ({"endpoints": [{"base_url": "http://x/v1", "api_key": "a b"}]}, "api_key"),
        ({"endpoints": [{"base_url": "http://x/v1", "api_base": "y"}]}, "api_base"),
        ({"endpoints": [{"base_url": "http://x/v1"}], "base_url": "http://x/v1"}, "base_url"),
        ({"base_url": "http://x/v1", "batch_gate": {"max_usage": 2}}, "max_usage"),
        ({}, "base_url"),
    ],
)
def test_bad_endpoints_are_refused(api: APIClient, config: dict[str, Any], field: str) -> None:
    told = register_by_api(api, "x", "openai_compatible", model_name="m", **config)
    assert_error(told, 400, "validation_error", "config")
    assert field in told.content.decode()


def test_only_openai_compatible_models_have_endpoints(api: APIClient) -> None:
    endpoints = [{"base_url": "http://x/v1"}]
    told = register_by_api(api, "x", "openai", model_name="m", endpoints=endpoints)
    assert_error(told, 400, "validation_error", "config")


def test_states_are_shown_to_those_who_may_monitor(
    api: APIClient, model: NewModel, servers: list[CloudServer]
) -> None:
    both = model()
    for number in range(8):
        answer(both, conversation_id=str(number))
    reports.publish()
    endpoints = api.get(f"{MODELS}/{both.name}").json()["endpoints"]
    assert [each["name"] for each in endpoints] == ["a", "b"]
    assert {(each["health"], each["in_flight"]) for each in endpoints} == {("healthy", 0)}
    assert all(each["latency_ms"] > 0 and each["limit"] >= 8 for each in endpoints)
    assert api.get(MODELS).json()["models"][0]["endpoints"] == endpoints
    metrics = api.get("/metrics").content.decode()
    assert 'sopllm_endpoint_healthy{endpoint="a",model="several"} 1.0' in metrics


def test_batch_work_waits_while_the_engine_is_busy(
    model: NewModel, servers: list[CloudServer]
) -> None:
    """One engine of 4 slots, of which others take more than it has."""
    both = model(
        {"max_concurrency": 1},
        {},
        batch_gate={"max_usage": 0.5},
        endpoints=[{"name": "b", "base_url": servers[1].openai_url}],
    )
    pool = pool_of(both)
    servers[1].delay_ms = 300
    with ThreadPoolExecutor(8) as threads:
        busy = [threads.submit(answer, both, priority=5.0) for _ in range(6)]
        wait_until(lambda: pool.lowest_priority(0, 0) > 0)
        batch = threads.submit(answer, both, prompt="batch", priority=0.0)
        for each in busy:
            each.result(20)
        assert batch.result(20)[0] == "batch"
    calls = [call.body["messages"][0]["content"] for call in servers[1].calls]
    assert calls[-1] == "batch"
    assert pool.lowest_priority(0, 0) == 0


# What follows knows neither servers nor a database.


def test_limit_grows_while_it_is_used_and_halves_once_a_round_trip() -> None:
    now = 0.0
    limit = AdaptiveLimit(64, first=8, clock=lambda: now)
    for _ in range(8):
        limit.on_success(now, in_flight=8)
    assert int(limit) == 16
    limit.on_success(now, in_flight=1)
    assert int(limit) == 16
    now = 1.0
    for _ in range(16):  # all of one round trip
        limit.on_failure(began_at=0.5)
    assert int(limit) == 8
    for _ in range(9):
        limit.on_success(now, in_flight=8)
    assert int(limit) == 9
    for _ in range(10_000):
        limit.on_success(now, in_flight=64)
    assert int(limit) == 64
    now = 2.0
    limit.on_success(1.5, in_flight=64, worked_part=0.5)
    limit.on_success(1.5, in_flight=64, worked_part=0.5)
    assert int(limit) == 40  # what is worked on, and a quarter more
    for _ in range(20):
        now += 1
        limit.on_failure(began_at=now)
    assert int(limit) == 1


def test_calls_that_wait_in_the_server_are_told_from_long_answers() -> None:
    latency = Latency()
    for _ in range(20):
        latency.heard_first(0.1)
        assert latency.heard_all(0.1, 1.0, 50) == 1
    for _ in range(20):
        latency.heard_first(1.9)
    assert latency.heard_all(1.9, 1.0, 50) == pytest.approx(1.1 / 2.9)


def test_server_that_is_slower_as_a_whole_has_no_calls_that_wait() -> None:
    latency = Latency()
    for slower in (1, 10):
        for _ in range(40):
            latency.heard_first(0.1 * slower)
            latency.heard_all(0.1 * slower, 0.5 * slower, 10)
    assert latency.heard_all(1.0, 5.0, 10) == 1


def test_call_that_still_waits_tells_that_a_server_is_slow() -> None:
    latency = Latency()
    assert latency.seconds(10, waited=0) is None
    latency.heard_first(1.0)
    latency.heard_all(1.0, 1.0, 10)
    assert latency.seconds(10, waited=0) == pytest.approx(2.0)
    assert latency.seconds(10, waited=5) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("lines", "load"),
    [
        (
            [
                'vllm:num_requests_waiting{model_name="a b"} 3.0',
                'vllm:num_requests_running{model_name="a b"} 8.0',
                'vllm:gpu_cache_usage_perc{model_name="a b"} 0.5',
            ],
            EngineLoad(3, 8, 0.5),
        ),
        (
            [f'vllm:num_requests_waiting{{engine="{number}"}} {number}' for number in (1, 2)]
            + [f'vllm:kv_cache_usage_perc{{engine="{part}"}} 0.{part}' for part in (9, 1)],
            EngineLoad(3, 0, 0.9),
        ),
        (
            [
                'sglang:num_queue_reqs{model_name="m"} 4.0',
                'sglang:num_running_reqs{model_name="m"} 2.0',
                'sglang:token_usage{model_name="m"} 0.28 1700000000',
            ],
            EngineLoad(4, 2, 0.28),
        ),
        (
            [
                "# TYPE llamacpp:requests_deferred gauge",
                "llamacpp:requests_deferred 0",
                "llamacpp:requests_processing 2",
            ],
            EngineLoad(0, 2, None),
        ),
        (["vllm:num_requests_waiting NaN"], None),
        (["vllm:num_requests_waiting{", "vllm:num_requests_waiting"], None),
        (["<html>", ""], None),
    ],
)
def test_loads_of_engines_are_read(lines: list[str], load: EngineLoad | None) -> None:
    assert parse(lines) == load


def test_gate_lets_more_in_until_the_engine_is_busy() -> None:
    gate = BatchGate(max_waiting=0, max_usage=0.8)
    for limit in (2, 4, 8):
        assert gate.read(EngineLoad(0, 8, 0.3), num_calls=gate.limit)
        assert gate.limit == limit
    assert not gate.read(EngineLoad(0, 8, 0.3), num_calls=2)  # not used
    for limit in (4, 2, 1, 0, 0):
        gate.read(EngineLoad(1, 8, 0.3), num_calls=8)
        assert gate.limit == limit
    for limit in (1, 2, 3):
        gate.read(EngineLoad(0, 8, 0.7), num_calls=gate.limit)
        assert gate.limit == limit
    gate.read(None, num_calls=3)
    assert gate.limit == 1


def test_gate_learns_how_much_an_engine_works_on_that_does_not_tell() -> None:
    gate = BatchGate(max_usage=0.8)
    assert gate.read(EngineLoad(0, 8, None), num_calls=1)
    gate.read(EngineLoad(2, 8, None), num_calls=2)
    assert gate.limit == 1
    gate.read(EngineLoad(0, 7, None), num_calls=1)
    assert gate.limit == 0
    gate.read(EngineLoad(0, 6, None), num_calls=0)
    assert gate.limit == 1


def test_requests_without_a_conversation_are_of_one_owner() -> None:
    one, other = (request("the same", owner=owner) for owner in ("ann", "bob"))
    assert endpoint_pool.affinity_key(one) != endpoint_pool.affinity_key(other)
    assert endpoint_pool.affinity_key(one) == endpoint_pool.affinity_key(one)
