"""Asking for models to be loaded and unloaded: what the rows say, and who is told."""

import os

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from inference import dispatch
from inference.loading import requests
from inference.models import Queue, RegisteredModel
from monitoring.hardware import worker_identity, workers
from monitoring.redis.client import client
from monitoring.streams import ends
from tests.conftest import Valkey

pytestmark = pytest.mark.django_db

Request = RegisteredModel.Request
Status = RegisteredModel.Status


@pytest.fixture
def model(valkey: Valkey) -> RegisteredModel:
    return RegisteredModel.objects.create(name="weights", provider="local")


def row(model: RegisteredModel) -> RegisteredModel:
    return RegisteredModel.objects.get(pk=model.pk)


def num_rung() -> int | None:
    return dispatch.waiting_messages(Queue.GPU)


@pytest.mark.parametrize(
    ("status", "request_", "is_asked"),
    [
        ("available", "load", True),
        ("error", "load", True),
        ("loading", "load", True),
        ("loaded", "load", False),
        ("available", "unload", False),
        ("error", "unload", False),
        ("loading", "unload", True),
        ("loaded", "unload", True),
    ],
)
def test_worker_is_asked_for_what_is_not_so_already(
    model: RegisteredModel, status: str, request_: str, is_asked: bool
) -> None:
    model.set_status(Status(status))
    requests.ask(row(model), Request(request_))
    assert row(model).requested == (request_ if is_asked else "")
    assert (row(model).requested_at is not None) == is_asked
    assert num_rung() == int(is_asked)


def test_last_request_counts(model: RegisteredModel) -> None:
    requests.ask(model, Request.LOAD)
    requests.ask(model, Request.UNLOAD)
    assert row(model).requested == "unload"
    requests.end(model, Request.LOAD)
    assert row(model).requested == "unload"


def test_repeated_request_keeps_its_place(model: RegisteredModel) -> None:
    requests.ask(model, Request.LOAD)
    asked_at = row(model).requested_at
    requests.ask(model, Request.LOAD)
    assert row(model).requested_at == asked_at


def test_end_of_a_request_is_announced_once(model: RegisteredModel) -> None:
    requests.ask(model, Request.LOAD)
    requests.end(model, Request.LOAD)
    requests.end(model, Request.LOAD)
    [(_, announced)] = client().xrange(ends.STREAM)
    assert announced == {"key": requests.wait_key(model)}
    assert (row(model).requested, row(model).requested_at) == ("", None)


def test_request_does_without_redis(model: RegisteredModel, valkey: Valkey) -> None:
    valkey.stop()
    requests.ask(model, Request.LOAD)
    assert row(model).requested == "load"
    requests.sweep()
    requests.end(model, Request.LOAD)
    assert row(model).requested == ""


def test_sweep_rings_for_a_request_whose_message_is_gone(model: RegisteredModel) -> None:
    requests.ask(model, Request.LOAD)
    client().flushall()
    requests.sweep()
    requests.sweep()  # one message is enough
    assert num_rung() == 1
    requests.end(model, Request.LOAD)
    client().flushall()
    requests.sweep()
    assert num_rung() == 0


@pytest.mark.parametrize(
    ("provider", "queue"), [("local", Queue.GPU), ("embedding", Queue.EMBEDDINGS)]
)
def test_sweep_wakes_the_worker_of_a_model_that_is_idle_for_too_long(
    model: RegisteredModel, provider: str, queue: Queue
) -> None:
    RegisteredModel.objects.update(provider=provider)
    model.set_status(Status.LOADED, worker_identity.current())
    requests.sweep()
    RegisteredModel.objects.update(unload_at=timezone.now())
    assert dispatch.waiting_messages(queue) == 0
    requests.sweep()
    requests.sweep()  # one message is enough
    waiting = {each: dispatch.waiting_messages(each) for each in (Queue.GPU, Queue.EMBEDDINGS)}
    assert waiting == {Queue.GPU: 0, Queue.EMBEDDINGS: 0} | {queue: 1}


def test_requests_are_served_by_whoever_holds_the_model(model: RegisteredModel) -> None:
    model.set_status(Status.LOADED, worker_identity.current())
    requests.ask(row(model), Request.UNLOAD)
    assert requests.are_pending()
    model.set_status(Status.LOADED, "another-host:1")
    assert not requests.are_pending()


@pytest.mark.parametrize("status", ["loading", "loaded"])
def test_dead_worker_holds_no_model(model: RegisteredModel, dead_worker: str, status: str) -> None:
    model.set_status(Status(status), dead_worker)
    RegisteredModel.objects.update(unload_at=timezone.now())
    requests.sweep()
    shown = row(model)
    assert (shown.status, shown.loaded_by, shown.unload_at) == ("available", "", None)


@pytest.mark.parametrize(("provider", "queue"), [("local", "gpu"), ("embedding", "embeddings")])
def test_silent_host_holds_no_model(
    model: RegisteredModel, monkeypatch: pytest.MonkeyPatch, provider: str, queue: str
) -> None:
    model.provider = provider
    model.save()
    model.set_status(Status.LOADED, "another-host:1")
    requests.ask(row(model), Request.UNLOAD)
    silent = {queue: {"another-host"}}
    monkeypatch.setattr(workers, "silent_hosts", lambda hosts, of: hosts & silent.get(of, set()))
    requests.sweep()
    shown = row(model)
    assert (shown.status, shown.loaded_by, shown.requested) == ("available", "", "")


def test_new_process_holds_no_model_of_a_dead_one_with_its_number(model: RegisteredModel) -> None:
    model.set_status(Status.LOADED, f"{worker_identity.prefix_of(os.getpid())}1")
    elsewhere = RegisteredModel.objects.create(name="elsewhere", provider="local")
    elsewhere.set_status(Status.LOADED, "another-host:1")
    requests.sweep()
    assert (row(model).status, row(elsewhere).status) == ("available", "loaded")


@pytest.mark.parametrize(
    "worker", [worker_identity.current(), "another-host:1"], ids=["own", "another host's"]
)
def test_living_worker_keeps_its_model(model: RegisteredModel, worker: str) -> None:
    model.set_status(Status.LOADED, worker)
    requests.sweep()
    assert (row(model).status, row(model).loaded_by) == ("loaded", worker)


def test_load_that_the_worker_did_not_survive_is_not_repeated(
    model: RegisteredModel, dead_worker: str
) -> None:
    requests.ask(model, Request.LOAD)
    model.set_status(Status.LOADING, dead_worker)
    requests.sweep()
    shown = row(model)
    assert (shown.status, shown.requested, shown.loaded_by) == ("error", "", "")
    assert "its log" in shown.status_message


def test_unload_asked_of_a_dead_worker_ends(model: RegisteredModel, dead_worker: str) -> None:
    model.set_status(Status.LOADED, dead_worker)
    requests.ask(row(model), Request.UNLOAD)
    requests.sweep()
    assert (row(model).status, row(model).requested) == ("available", "")


@pytest.mark.parametrize("request_", ["load", "unload"])
def test_admin_asks_for_local_models(admin_client: Client, valkey: Valkey, request_: str) -> None:
    local, echo = (
        RegisteredModel.objects.create(name=kind, provider=kind) for kind in ("local", "echo")
    )
    if request_ == "unload":
        local.set_status(Status.LOADED, "worker:1")
    url = reverse("admin:inference_registeredmodel_changelist")
    form = {"action": f"{request_}_models", "_selected_action": [local.pk, echo.pk]}
    page = admin_client.post(url, form, follow=True)
    assert f"Asked to {request_} 1 local models." in page.content.decode()
    assert (row(local).requested, row(echo).requested) == (request_, "")
