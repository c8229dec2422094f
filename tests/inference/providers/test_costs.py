"""What tasks of cloud models cost, from the call to the report, and what stops them before."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from inference.api.report import report
from inference.lifecycle import finish
from inference.models import GenerationTask, RegisteredModel
from monitoring.models import OwnerUse
from monitoring.redis.client import client
from monitoring.streams.delta_stream import stream_key
from tests.cloud_server import CloudServer, Fault
from tests.conftest import wait_until
from tests.inference.execution.cloud_sessions import execute
from tests.inference.lifecycle.test_lifecycle import claimed, fresh
from tests.inference.providers.conftest import Register

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]

NewTask = Callable[..., GenerationTask]
Kind = RegisteredModel.Provider

PROMPT = "one two three four five six"
# The stand-in takes half of a prompt from its cache.
MINI_USD = (3 * 0.15 + 3 * 0.075 + 6 * 0.60) / 1e6
PRICES = {"input_cost_per_token": 0.01, "output_cost_per_token": 0.1}


@pytest.fixture
def run(new_task: NewTask) -> Callable[..., GenerationTask]:
    """Runs a task of the model `cloud`, with a limit of dollars a month if one is given."""

    def run(max_usd_per_month: float | None = None, **fields: Any) -> GenerationTask:
        task = new_task(**{"owner": "ann", "model": "cloud", "prompt": PROMPT} | fields)
        row = GenerationTask.objects.filter(pk=task.pk)
        row.update(max_usd_per_month=max_usd_per_month)
        while row.filter(status="pending").exists():
            execute(claimed(task))
        return fresh(task)

    return run


def spent(owner: str = "ann") -> float:
    return OwnerUse.objects.this_month(owner)["cost_usd"]


def test_report_and_use_have_the_cost(
    register: Register, run: Callable[..., GenerationTask]
) -> None:
    register(Kind.OPENAI)
    assert report(run())["cost_usd"] == pytest.approx(MINI_USD)
    run()
    assert spent() == pytest.approx(2 * MINI_USD)
    assert spent("bob") == 0


def test_unknown_price_is_null(register: Register, run: Callable[..., GenerationTask]) -> None:
    register(Kind.OPENAI_COMPATIBLE)
    task = run()
    assert task.status == "completed"
    assert report(task)["cost_usd"] is None
    assert spent() == 0
    assert report(run(model="echo"))["cost_usd"] is None


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.NO_USAGE])
def test_answer_whose_usage_is_not_told_is_estimated(
    register: Register, server: CloudServer, run: Callable[..., GenerationTask], fault: Fault
) -> None:
    register(Kind.OPENAI, max_retries=0, **PRICES)
    server.faults.append(fault)
    task = run()
    assert task.usage["prompt_tokens"] > 0
    assert task.usage["completion_tokens"] > 0
    usd = task.usage["prompt_tokens"] * 0.01 + task.usage["completion_tokens"] * 0.1
    assert report(task)["cost_usd"] == pytest.approx(usd) == spent()


def test_call_that_got_no_answer_costs_nothing(
    register: Register, server: CloudServer, run: Callable[..., GenerationTask]
) -> None:
    register(Kind.OPENAI, max_retries=0, **PRICES)
    server.faults.append(Fault.UNAVAILABLE)
    assert report(run())["cost_usd"] is None
    assert spent() == 0


def test_answers_that_start_over_cost_as_well(
    register: Register, server: CloudServer, run: Callable[..., GenerationTask]
) -> None:
    register(Kind.OPENAI, **PRICES)
    server.faults.append(Fault.CUT)
    task = run()
    first, second = [each["cost_usd"] for each in report(task)["attempts"]]
    assert first > 0
    assert second == pytest.approx(0.06 + 0.6)
    assert spent() == pytest.approx(first + second)


def test_cancelled_answer_costs_what_has_come(
    register: Register, server: CloudServer, new_task: NewTask
) -> None:
    register(Kind.OPENAI, **PRICES)
    server.faults.append(Fault.HANG_MIDWAY)
    task = new_task(owner="ann", model="cloud", prompt=PROMPT)

    def cancel_once_text_has_come() -> None:
        wait_until(lambda: client().exists(stream_key(task.pk)))
        finish.cancel(task)
        connection.close()

    cancelling = threading.Thread(target=cancel_once_text_has_come)
    cancelling.start()
    execute(claimed(task))
    cancelling.join()
    body = report(fresh(task))
    assert body["task"]["status"] == "cancelled"
    usd = body["tokens"]["prompt_tokens"] * 0.01 + body["tokens"]["completion_tokens"] * 0.1
    assert body["cost_usd"] == pytest.approx(usd) == spent()
    assert body["tokens"]["prompt_tokens"] > 0


def test_task_that_may_cost_too_much_is_not_asked(
    register: Register, server: CloudServer, run: Callable[..., GenerationTask]
) -> None:
    register(Kind.OPENAI, **PRICES)
    task = run(max_usd_per_month=10, max_tokens=100)  # of 0.1 dollars each, and the prompt
    assert (task.status, task.error_code) == ("failed", "budget_exceeded")
    assert not server.calls
    assert run(max_usd_per_month=10, max_tokens=50).status == "completed"
    assert spent() == pytest.approx(0.66)


def test_unknown_price_and_a_limit_do_not_go_together(
    register: Register, server: CloudServer, run: Callable[..., GenerationTask]
) -> None:
    model = register(Kind.OPENAI_COMPATIBLE)
    task = run(max_usd_per_month=10)
    assert (task.status, task.error_code) == ("failed", "budget_exceeded")
    assert not server.calls
    model.config |= {"input_cost_per_token": 0, "output_cost_per_token": 0}
    model.save()
    task = run(max_usd_per_month=0)
    assert (task.status, report(task)["cost_usd"]) == ("completed", 0)


def test_model_that_costs_nothing_takes_over(
    register: Register, server: CloudServer, run: Callable[..., GenerationTask]
) -> None:
    register(Kind.OPENAI, **PRICES)
    task = run(max_usd_per_month=0, fallback_models=["echo"])
    assert (task.status, task.model_name) == ("completed", "echo")
    assert not server.calls
