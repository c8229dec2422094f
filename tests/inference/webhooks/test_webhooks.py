"""Webhooks: written with the end of a task, signed, and delivered until they are taken."""

import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.admin.utils import quote
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from inference import dispatch
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import finish
from inference.lifecycle.finish import Timings
from inference.lifecycle.sweep import sweep as sweep_tasks
from inference.models import GenerationTask, RegisteredModel, WebhookDelivery, WebhookSecret
from inference.models.webhook_deliveries import DeliveryLogEntry
from inference.tasks import deliver_webhooks, purge, sweep
from inference.webhooks import addresses, deliveries, http_client, sending, urls
from inference.webhooks.http_client import UnansweredError
from inference.webhooks.signing import is_secret, secrets_of, signed_headers
from monitoring.api.principal import Principal, Scope
from monitoring.hardware import worker_identity
from monitoring.redis.client import client
from tests.certificates import Authority
from tests.conftest import Valkey, client_of
from tests.inference.lifecycle.test_lifecycle import (
    TIMINGS,
    NewTask,
    answer,
    claimed,
    lose,
    run_in_threads,
)
from tests.webhook_receiver import Receiver, Reply, receiving

CURRENT, OLD = (f"whsec_{letter * 43}=" for letter in "ab")
Status = WebhookDelivery.Status
ENTRY = DeliveryLogEntry(attempt=1, at="", status_code=200, error=None, duration_ms=1.0)


@pytest.fixture(autouse=True)
def _secrets(settings: Settings) -> None:
    settings.WEBHOOK_SECRETS = [CURRENT]


@pytest.fixture
def receiver(settings: Settings) -> Iterator[Receiver]:
    settings.WEBHOOK_ALLOWED_HOSTS = ["127.0.0.1"]
    with receiving() as running:
        yield running


@pytest.fixture
def end_task(new_task: NewTask, receiver: Receiver) -> Callable[..., WebhookDelivery]:
    """Completes a task that has a webhook."""

    def end(url: str | None = None, **fields: object) -> WebhookDelivery:
        task = new_task(webhook_url=url or receiver.url(), **fields)
        finish.complete(claimed(task), answer(), TIMINGS)
        return WebhookDelivery.objects.get(task=task)

    return end


EndTask = Callable[..., WebhookDelivery]


def fresh(delivery: WebhookDelivery) -> WebhookDelivery:
    return WebhookDelivery.objects.get(pk=delivery.pk)


def attempt(delivery: WebhookDelivery) -> WebhookDelivery:
    """Its time has come: what is stored after the attempt."""
    past = timezone.now() - timedelta(seconds=1)
    row = WebhookDelivery.objects.filter(pk=delivery.pk)
    row.exclude(lease_until=None).update(lease_until=past)
    row.take_back()
    row.exclude(due_at=None).update(due_at=past)
    sending.deliver_due()
    return fresh(delivery)


def seconds_until(delivery: WebhookDelivery) -> float:
    assert delivery.next_attempt_at is not None
    return (delivery.next_attempt_at - timezone.now()).total_seconds()


def last_error(delivery: WebhookDelivery) -> str:
    return str(delivery.log[-1]["error"])


# Written with the end of a task


def complete(task: GenerationTask) -> None:
    finish.complete(claimed(task), answer(), TIMINGS)


def fail(task: GenerationTask) -> None:
    failure = InferenceError("It broke.", ErrorCode.PROVIDER_ERROR)
    finish.fail(claimed(task), failure, None, Timings())


def cancel(task: GenerationTask) -> None:
    finish.finish_cancelled(claimed(task), answer(finish_reason="cancelled"), TIMINGS)


def cancel_before_it_starts(task: GenerationTask) -> None:
    finish.cancel(task)


def miss_the_deadline(task: GenerationTask) -> None:
    past = timezone.now() - timedelta(seconds=1)
    GenerationTask.objects.filter(pk=task.pk).update(deadline_at=past)
    sweep_tasks()


def lose_all_workers(task: GenerationTask) -> None:
    for _ in range(django_settings.MAX_ATTEMPTS):
        claimed(task)
        lose(task)


def lose_when_cancelled(task: GenerationTask) -> None:
    finish.cancel(claimed(task).task)
    lose(task)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (complete, "completed"),
        (fail, "failed"),
        (cancel, "cancelled"),
        (cancel_before_it_starts, "cancelled"),
        (miss_the_deadline, "failed"),
        (lose_all_workers, "failed"),
        (lose_when_cancelled, "cancelled"),
    ],
)
def test_each_end_of_a_task_writes_what_is_to_be_told_of_it(
    api: APIClient,
    new_task: NewTask,
    receiver: Receiver,
    end: Callable[[GenerationTask], None],
    status: str,
) -> None:
    task = new_task(webhook_url=receiver.url(), metadata={"mine": "ü\u2028"})
    end(task)
    [delivery] = WebhookDelivery.objects.all()
    payload = json.loads(delivery.payload)
    assert payload == {
        "type": f"task.{status}",
        "timestamp": payload["data"]["finished_at"],
        "data": api.get(f"/api/v1/tasks/{task.pk}").json(),
    }
    assert payload["data"]["status"] == status
    assert payload["timestamp"]
    assert (delivery.event, delivery.task_id) == (f"task.{status}", task.pk)
    assert (delivery.status, delivery.attempt) == (Status.PENDING, 0)
    assert list(WebhookDelivery.objects.due()) == [delivery]


def test_task_without_a_webhook_writes_none_and_pays_nothing(
    new_task: NewTask, receiver: Receiver
) -> None:
    num_queries = []
    for fields in ({}, {"webhook_url": receiver.url()}):
        task = new_task(**fields)
        lease = claimed(task)
        with CaptureQueriesContext(connection) as queries:
            finish.complete(lease, answer(), TIMINGS)
        num_queries.append(len(queries))
        about_webhooks = [each for each in queries if "webhookdelivery" in each["sql"]]
        assert len(about_webhooks) == len(fields)
    assert num_queries[1] == num_queries[0] + 2  # the row as it is now, and the delivery


def test_end_that_does_not_count_writes_nothing(new_task: NewTask, receiver: Receiver) -> None:
    task = new_task(webhook_url=receiver.url())
    late = claimed(task)
    lose(task)
    assert not finish.complete(late, answer(), TIMINGS)
    assert not WebhookDelivery.objects.exists()


def test_handing_on_to_a_fallback_is_no_end(new_task: NewTask, receiver: Receiver) -> None:
    RegisteredModel.objects.create(name="other", provider="echo")
    task = new_task(webhook_url=receiver.url(), fallback_models=["other"])
    fail(task)
    assert not WebhookDelivery.objects.exists()
    complete(task)
    assert WebhookDelivery.objects.get().event == "task.completed"


@pytest.mark.django_db(transaction=True)
def test_end_that_is_rolled_back_leaves_no_webhook(new_task: NewTask, receiver: Receiver) -> None:
    lease = claimed(new_task(webhook_url=receiver.url()))
    with transaction.atomic():
        finish.complete(lease, answer(), TIMINGS)
        transaction.set_rollback(True)
    assert not WebhookDelivery.objects.exists()


def test_end_wakes_a_default_worker_at_the_first_priority(
    end_task: EndTask, valkey: Valkey
) -> None:
    end_task()
    assert dispatch.messages_by_priority(["default"]) == {"default": {"0": 1}}
    message = json.loads(client().lrange("default", 0, -1)[0])
    assert message["headers"]["task"] == deliver_webhooks.name


@pytest.mark.django_db(transaction=True)
def test_end_without_a_broker_is_repaired_by_the_sweep(end_task: EndTask, valkey: Valkey) -> None:
    valkey.stop()
    delivery = end_task()
    valkey.start()
    dispatch._broker_down_until = 0.0
    assert dispatch.waiting_messages("default") == 0
    sweep()
    assert dispatch.waiting_messages("default") == 1
    assert attempt(delivery).status == Status.DELIVERED


# Signed


def test_receiver_verifies_what_arrives(end_task: EndTask, receiver: Receiver) -> None:
    delivery = end_task(receiver.url("/hook?token=1"))
    assert attempt(delivery).status == Status.DELIVERED
    [call] = receiver.calls
    assert call.verified(CURRENT) == json.loads(delivery.payload)
    assert call.path == "/hook?token=1"
    assert call.webhook_id == delivery.pk
    assert call.headers["content-type"] == "application/json"
    assert call.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert call.headers["user-agent"].startswith("sop-llm-executor/")
    assert "cookie" not in call.headers
    assert "authorization" not in call.headers


def test_both_secrets_sign_while_one_follows_the_other(
    settings: Settings, end_task: EndTask, receiver: Receiver
) -> None:
    settings.WEBHOOK_SECRETS = [CURRENT, OLD]
    attempt(end_task())
    [call] = receiver.calls
    assert call.headers["webhook-signature"].count("v1,") == 2
    assert call.verified(CURRENT) == call.verified(OLD)
    with pytest.raises(WebhookVerificationError):
        call.verified(f"whsec_{'c' * 43}=")


SECRET = "/api/v1/webhooks/secret"


def as_owner(owner: str) -> APIClient:
    return client_of(Principal(name=owner, owner=owner, scopes=frozenset({Scope.TASKS})))


def test_webhook_of_one_owner_does_not_verify_with_the_secret_of_another(
    end_task: EndTask, receiver: Receiver
) -> None:
    secrets = {owner: as_owner(owner).post(SECRET).json()["secret"] for owner in ("alice", "bob")}
    delivery = attempt(end_task(owner="alice"))
    assert delivery.owner == "alice"
    [call] = receiver.calls
    assert call.verified(secrets["alice"])["data"]["task_id"] == delivery.task_id
    for secret in (secrets["bob"], CURRENT):
        with pytest.raises(WebhookVerificationError):
            call.verified(secret)


def test_secret_is_shown_once_and_the_one_before_signs_for_a_day(
    end_task: EndTask, receiver: Receiver
) -> None:
    alice = as_owner("alice")
    assert alice.get(SECRET).json() == {
        "version": 0,
        "made_at": None,
        "previous_signs_until": None,
    }
    answers = [alice.post(SECRET) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201] * 3
    first, second, third = (answer.json()["secret"] for answer in answers)
    assert all(map(is_secret, (first, second, third)))
    shown = alice.get(SECRET).json()
    assert shown == {name: answers[-1].json()[name] for name in shown}
    assert (shown["version"], "secret" in shown) == (3, False)
    assert as_owner("bob").get(SECRET).json()["version"] == 0

    attempt(end_task(owner="alice"))
    receiver.calls[0].verified(third)
    receiver.calls[0].verified(second)
    with pytest.raises(WebhookVerificationError):
        receiver.calls[0].verified(first)
    WebhookSecret.objects.update(made_at=timezone.now() - timedelta(hours=24, seconds=1))
    attempt(end_task(owner="alice"))
    receiver.calls[1].verified(third)
    with pytest.raises(WebhookVerificationError):
        receiver.calls[1].verified(second)


def test_webhook_that_waits_is_signed_with_the_secret_that_is_made_meanwhile(
    end_task: EndTask, receiver: Receiver
) -> None:
    receiver.replies = [Reply(500)]
    delivery = attempt(end_task(owner="alice"))
    secret = as_owner("alice").post(SECRET).json()["secret"]
    assert attempt(delivery).status == Status.DELIVERED
    receiver.calls[1].verified(secret)
    with pytest.raises(WebhookVerificationError):
        receiver.calls[0].verified(secret)


def test_local_owner_has_the_setting_until_it_makes_a_secret_of_its_own(
    api: APIClient, end_task: EndTask, receiver: Receiver
) -> None:
    secret = api.post(SECRET).json()["secret"]
    assert secret != CURRENT
    attempt(end_task())
    receiver.calls[0].verified(secret)
    receiver.calls[0].verified(CURRENT)


def test_owner_s_secrets_follow_each_of_the_setting(settings: Settings, db: None) -> None:
    settings.WEBHOOK_SECRETS = [CURRENT, OLD]
    shown = as_owner("alice").post(SECRET).json()["secret"]
    settings.WEBHOOK_SECRETS = [OLD, CURRENT]
    signing = secrets_of("alice")
    assert (len(set(signing)), signing[1]) == (4, shown)


def test_secret_without_a_setting_to_derive_it_from_is_refused(
    settings: Settings, api: APIClient
) -> None:
    settings.WEBHOOK_SECRETS = []
    response = api.post(SECRET)
    assert (response.status_code, response.json()["error"]) == (409, "conflict")
    assert "WEBHOOK_SECRETS" in response.json()["message"]
    assert not WebhookSecret.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_each_of_many_who_make_a_secret_at_once_gets_one_of_its_own(db: None) -> None:
    made: list[int] = []
    run_in_threads(8, lambda: made.append(WebhookSecret.objects.renew("alice").version))
    assert sorted(made) == list(range(1, 9))


def test_signature_does_not_fit_another_payload() -> None:
    moment = timezone.now()
    headers = signed_headers("whk_1", "{}", [CURRENT], moment)
    Webhook(CURRENT).verify("{}", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(CURRENT).verify('{"a":1}', headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(CURRENT).verify("{}", headers | {"webhook-id": "whk_2"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CURRENT, True),
        (f"whsec_{'A' * 32}", True),
        (f"whsec_{'A' * 28}", False),
        (f"whsec_{'A' * 88}", False),
        (f"whsec_{'A' * 31}", False),
        (f"whsec_{'ä' * 32}", False),
        (f"whsec_{'A' * 31}-", False),
        ("A" * 44, False),
        ("whsec_", False),
        ("", False),
    ],
)
def test_secret_is_known_by_its_form(text: str, expected: bool) -> None:
    assert is_secret(text) is expected


def test_delivery_waits_until_it_can_be_signed(
    settings: Settings, end_task: EndTask, receiver: Receiver
) -> None:
    delivery = end_task()
    settings.WEBHOOK_SECRETS = []
    delivery = attempt(delivery)
    assert delivery.status == Status.PENDING
    assert "set WEBHOOK_SECRETS" in last_error(delivery)
    assert not receiver.calls


# Retried


def test_receiver_that_fails_five_times_gets_it_once(end_task: EndTask, receiver: Receiver) -> None:
    receiver.replies = [Reply(500)] * 5
    delivery = end_task()
    waits = []
    for number in range(1, 6):
        delivery = attempt(delivery)
        assert (delivery.status, delivery.attempt) == (Status.PENDING, number)
        waits.append(seconds_until(delivery))
    delivery = attempt(delivery)
    assert (delivery.status, delivery.attempt) == (Status.DELIVERED, 6)
    assert delivery.delivered_at is not None
    assert delivery.next_attempt_at is None
    sending.deliver_due()
    assert len(receiver.calls) == 6
    assert {call.webhook_id for call in receiver.calls} == {delivery.pk}
    assert [call.verified(CURRENT) for call in receiver.calls] == [json.loads(delivery.payload)] * 6
    assert [entry["status_code"] for entry in delivery.log] == [500] * 5 + [200]
    assert [entry["attempt"] for entry in delivery.log] == [1, 2, 3, 4, 5, 6]
    for number, wait in enumerate(waits):
        assert 5 * 2**number * 0.74 - 1 < wait < 5 * 2**number * 1.26


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_answer_that_takes_it_ends_it(end_task: EndTask, receiver: Receiver, status: int) -> None:
    receiver.replies = [Reply(status, body=b"")]
    assert attempt(end_task()).status == Status.DELIVERED


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_answer_that_may_change_is_asked_for_again(
    end_task: EndTask, receiver: Receiver, status: int
) -> None:
    receiver.replies = [Reply(status)]
    delivery = attempt(end_task())
    assert delivery.status == Status.PENDING
    assert delivery.log[0]["status_code"] == status
    assert delivery.expires_at is None


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 400, 401, 404, 410, 418])
def test_other_answers_end_it_as_failed(end_task: EndTask, receiver: Receiver, status: int) -> None:
    receiver.replies = [Reply(status, {"location": receiver.url("/elsewhere")})]
    delivery = attempt(end_task())
    assert (delivery.status, delivery.delivered_at) == (Status.FAILED, None)
    assert delivery.next_attempt_at is None
    assert [call.path for call in receiver.calls] == ["/hook"]


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        ("120", 120),
        ("1", 5),
        ("999999999999999999999", 3600),
        (lambda: format_datetime(timezone.now() + timedelta(seconds=300), usegmt=False), 300),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 5),
        ("Wed, 21 Oct 2015 07:28:00", 5),
        ("soon", 5),
        ("-5", 5),
        ("١٢٠", 5),
    ],
)
def test_receiver_may_ask_for_more_time(
    end_task: EndTask, receiver: Receiver, retry_after: Any, expected: float
) -> None:
    text = retry_after() if callable(retry_after) else retry_after
    header = text.encode().decode("latin-1")
    receiver.replies = [Reply(503, {"retry-after": header})]
    assert expected * 0.74 - 2 < seconds_until(attempt(end_task())) < expected * 1.26 + 1


def test_pauses_end_at_an_hour(end_task: EndTask, receiver: Receiver) -> None:
    receiver.replies = [Reply(500)]
    delivery = end_task()
    WebhookDelivery.objects.filter(pk=delivery.pk).update(attempt=1_000_000)
    assert 2690 < seconds_until(attempt(delivery)) <= 3600


def test_first_pause_is_a_setting(
    settings: Settings, end_task: EndTask, receiver: Receiver
) -> None:
    settings.WEBHOOK_RETRY_SECONDS = 1000.0
    receiver.replies = [Reply(500)]
    assert 740 < seconds_until(attempt(end_task())) < 1260


def test_it_is_given_up_after_a_day(end_task: EndTask, receiver: Receiver) -> None:
    receiver.replies = [Reply(500), Reply(500)]
    delivery = attempt(end_task())
    assert delivery.status == Status.PENDING
    yesterday = delivery.give_up_at - timedelta(hours=24)
    WebhookDelivery.objects.filter(pk=delivery.pk).update(give_up_at=yesterday)
    delivery = attempt(delivery)
    assert delivery.status == Status.FAILED
    assert delivery.expires_at is not None


def test_log_keeps_the_last_attempts(end_task: EndTask, receiver: Receiver) -> None:
    delivery = end_task()
    entries = [ENTRY | {"attempt": number} for number in range(1, 51)]
    WebhookDelivery.objects.filter(pk=delivery.pk).update(log=entries, attempt=50)
    delivery = attempt(delivery)
    assert [entry["attempt"] for entry in delivery.log] == list(range(2, 52))


def test_unexpected_error_is_told_and_tried_again(
    end_task: EndTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError

    delivery = end_task()
    monkeypatch.setattr(http_client, "post", break_down)
    delivery = attempt(delivery)
    assert delivery.status == Status.PENDING
    assert "its log has the reason" in last_error(delivery)


# Within limits


@pytest.fixture
def _half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_LIMIT_SECONDS", 0.5)


@pytest.fixture
def silent(settings: Settings) -> Iterator[int]:
    """The port of a server that accepts connections, and neither reads nor writes."""
    settings.WEBHOOK_ALLOWED_HOSTS = ["127.0.0.1"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


NO_ANSWER = "There was no answer within 0.5 s."


@pytest.mark.usefixtures("_half_a_second")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_silent_receiver_is_left_after_the_limit(
    end_task: EndTask, silent: int, scheme: str
) -> None:
    delivery = attempt(end_task(f"{scheme}://127.0.0.1:{silent}/"))
    assert (delivery.status, last_error(delivery)) == (Status.PENDING, NO_ANSWER)


@pytest.mark.usefixtures("_half_a_second")
@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 "]
)
def test_dripping_gains_no_time(end_task: EndTask, receiver: Receiver, head: bytes) -> None:
    head = head or b"HTTP/1.1 200 "
    receiver.replies = [Reply(act=lambda connection: receiver.drip(connection, head))]
    delivery = attempt(end_task())
    assert (delivery.status, last_error(delivery)) == (Status.PENDING, NO_ANSWER)


@pytest.mark.usefixtures("_half_a_second")
def test_dripping_body_does_not_take_back_the_answer(end_task: EndTask, receiver: Receiver) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"
    receiver.replies = [Reply(act=lambda connection: receiver.drip(connection, head))]
    assert attempt(end_task()).status == Status.DELIVERED


def test_receiver_that_reads_nothing_is_left_after_the_limit(
    settings: Settings, silent: int
) -> None:
    url = urls.parse(f"http://127.0.0.1:{silent}/")
    with pytest.raises(UnansweredError, match=r"within 0\.3 s"):
        http_client.post(url, {}, bytes(50_000_000), 0.3)


def test_endless_body_is_not_read(end_task: EndTask, receiver: Receiver) -> None:
    hung_up = threading.Event()

    def pour(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                connection.sendall(bytes(65536))
        except OSError:
            hung_up.set()

    receiver.replies = [Reply(act=pour)]
    assert attempt(end_task()).status == Status.DELIVERED
    assert hung_up.wait(20)


def test_early_refusal_of_a_large_body_is_heard(settings: Settings, receiver: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        url = urls.parse(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        try:
            answered = http_client.post(url, {}, bytes(5_000_000), 10)
        except UnansweredError as error:
            # The refusal is lost where the system resets the connection first.
            assert "reset" in str(error)  # noqa: PT017
        else:
            assert answered.status_code == 413
        thread.join()


@pytest.mark.parametrize(
    "act",
    [
        lambda connection: connection.close(),
        lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9\r\n"),
        lambda connection: connection.sendall(b"HTTP/1.1 200"),
        lambda connection: connection.sendall(b"x" * 200_000),
    ],
    ids=["nothing", "no HTTP", "half a line", "no end"],
)
def test_answer_that_is_none_is_a_reason_to_try_again(
    end_task: EndTask, receiver: Receiver, act: Callable[[socket.socket], None]
) -> None:
    receiver.replies = [Reply(act=act)]
    delivery = attempt(end_task())
    assert delivery.status == Status.PENDING
    assert 0 < len(last_error(delivery)) <= 200


def test_receiver_that_is_away_is_tried_again(end_task: EndTask, receiver: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    delivery = attempt(end_task(f"http://127.0.0.1:{port}/"))
    assert delivery.status == Status.PENDING
    assert "refused" in last_error(delivery)
    assert delivery.log[0]["status_code"] is None


# To allowed addresses alone


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has every name lead to one address from now on."""

    def lead_to(address: str) -> None:
        monkeypatch.setattr(addresses, "resolve", lambda host, seconds: [ip_address(address)])

    lead_to("93.184.216.34")
    urls._verdicts.clear()
    return lead_to


@pytest.mark.parametrize("inside", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1"])
def test_name_that_changes_its_address_is_refused_at_the_connection(
    settings: Settings,
    end_task: EndTask,
    receiver: Receiver,
    resolver: Callable[[str], None],
    inside: str,
) -> None:
    settings.WEBHOOK_ALLOW_HTTP = True
    delivery = end_task(receiver.url(host="good.example"))
    resolver(inside)
    delivery = attempt(delivery)
    assert delivery.status == Status.FAILED
    assert "not public" in last_error(delivery)
    assert not receiver.calls


def test_checked_address_is_what_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, resolver: Callable[[str], None]
) -> None:
    tried: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError("refused")

    resolved = [ip_address("93.184.216.34"), ip_address("2606:4700::1111")]
    monkeypatch.setattr(addresses, "resolve", lambda host, seconds: resolved)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(UnansweredError, match="refused"):
        http_client.post(urls.parse("https://good.example/"), {}, b"", 5)
    assert tried == [("93.184.216.34", 443), ("2606:4700::1111", 443)]


def test_setting_that_has_changed_counts_at_the_connection(
    settings: Settings, end_task: EndTask, receiver: Receiver
) -> None:
    delivery = end_task()
    settings.WEBHOOK_ALLOWED_HOSTS = []
    delivery = attempt(delivery)
    assert delivery.status == Status.FAILED
    assert "https" in last_error(delivery)
    assert not receiver.calls


def test_redirect_to_loopback_is_not_followed(
    settings: Settings, end_task: EndTask, receiver: Receiver
) -> None:
    with receiving() as inside:
        settings.WEBHOOK_ALLOWED_HOSTS = [f"127.0.0.1:{receiver.port}"]
        receiver.replies = [Reply(307, {"location": inside.url("/admin")})]
        assert attempt(end_task()).status == Status.FAILED
        assert not inside.calls


def test_proxies_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, end_task: EndTask
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert attempt(end_task()).status == Status.DELIVERED


# Over TLS


@pytest.fixture
def authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> Iterator[Authority]:
    """One that is trusted, as SSL_CERT_FILE has it; receivers are at any name of loopback."""
    settings.WEBHOOK_ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    http_client._ssl_context.cache_clear()
    yield authority
    http_client._ssl_context.cache_clear()


def deliver_over_tls(end_task: EndTask, tls: ssl.SSLContext, host: str) -> WebhookDelivery:
    with receiving(tls) as receiver:
        delivery = attempt(end_task(receiver.url(scheme="https", host=host)))
        assert len(receiver.calls) == (delivery.status == Status.DELIVERED)
        return delivery


def test_certificate_of_the_name_is_accepted(end_task: EndTask, authority: Authority) -> None:
    tls = authority.server_context("localhost")
    asked: list[str | None] = []
    tls.sni_callback = lambda connection, name, context: asked.append(name)
    delivery = deliver_over_tls(end_task, tls, "localhost")
    assert delivery.status == Status.DELIVERED, delivery.log
    assert asked == ["localhost"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_certificate_of_another_name_is_refused(
    end_task: EndTask, authority: Authority, host: str
) -> None:
    delivery = deliver_over_tls(end_task, authority.server_context("other.example"), host)
    assert delivery.status == Status.PENDING
    assert "CERTIFICATE_VERIFY_FAILED" in last_error(delivery)


def test_certificate_of_an_unknown_authority_is_refused(
    end_task: EndTask, authority: Authority, tmp_path: Path
) -> None:
    folder = tmp_path / "unknown"
    folder.mkdir()
    tls = Authority(folder).server_context("localhost")
    delivery = deliver_over_tls(end_task, tls, "localhost")
    assert delivery.status == Status.PENDING
    assert "CERTIFICATE_VERIFY_FAILED" in last_error(delivery)


# By one worker at a time


def test_delivery_under_way_is_not_taken_again(end_task: EndTask) -> None:
    delivery = end_task()
    taken = WebhookDelivery.objects.claim_next(worker_identity.current())
    assert taken == delivery
    assert (taken.status, taken.attempt) == (Status.DELIVERING, 1)
    assert WebhookDelivery.objects.claim_next(worker_identity.current()) is None
    sweep()
    assert fresh(delivery).status == Status.DELIVERING


def test_delivery_of_a_lost_worker_is_taken_again(end_task: EndTask, receiver: Receiver) -> None:
    end_task()
    lost = WebhookDelivery.objects.claim_next(worker_identity.current())
    assert lost is not None
    delivery = attempt(lost)
    assert (delivery.status, delivery.attempt) == (Status.DELIVERED, 2)
    assert [entry["attempt"] for entry in delivery.log] == [2]


def test_late_answer_of_a_lost_worker_changes_nothing(end_task: EndTask) -> None:
    end_task()
    lost = WebhookDelivery.objects.claim_next(worker_identity.current())
    assert lost is not None
    delivered = attempt(lost)
    assert not lost.succeed(ENTRY)
    assert not lost.give_up(ENTRY)
    assert not lost.retry(ENTRY, 1.0)
    assert fresh(lost).log == delivered.log


def test_claim_outlives_the_longest_attempt(end_task: EndTask) -> None:
    end_task()
    taken = WebhookDelivery.objects.claim_next(worker_identity.current())
    assert taken is not None
    assert seconds_until(taken) > sending._LIMIT_SECONDS + 5


@pytest.mark.django_db(transaction=True)
def test_many_workers_deliver_each_once(end_task: EndTask, receiver: Receiver) -> None:
    deliveries = [end_task() for _ in range(12)]
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        while WebhookDelivery.objects.due().exists():
            sending.deliver_due()
        connection.close()

    run_in_threads(4, work)
    assert sorted(call.webhook_id for call in receiver.calls) == sorted(d.pk for d in deliveries)
    assert {fresh(delivery).status for delivery in deliveries} == {Status.DELIVERED}


def test_new_ones_go_before_those_that_have_failed(end_task: EndTask, receiver: Receiver) -> None:
    receiver.replies = [Reply(500)]
    failed = attempt(end_task(receiver.url("/first")))
    past = timezone.now() - timedelta(seconds=60)
    WebhookDelivery.objects.filter(pk=failed.pk).update(due_at=past)
    end_task(receiver.url("/second"))
    sending.deliver_due()
    sending.deliver_due()
    assert [call.path for call in receiver.calls] == ["/first", "/second", "/first"]


def test_deliveries_take_half_of_the_threads(settings: Settings) -> None:
    for num_threads, expected in ((16, 8), (5, 2), (2, 1)):
        settings.DEFAULT_CONCURRENCY = num_threads
        assert deliveries.max_at_once() == expected


@pytest.mark.django_db(transaction=True)
def test_others_wait_until_a_slot_is_free(
    end_task: EndTask, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, valkey: Valkey
) -> None:
    monkeypatch.setattr(sending, "_slots", threading.BoundedSemaphore(1))
    arrived, go_on = threading.Event(), threading.Event()

    def hold_up(held: socket.socket) -> None:
        arrived.set()
        go_on.wait(20)
        held.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    receiver.replies = [Reply(act=hold_up)]
    slow, waiting = end_task(), end_task()

    def work() -> None:
        sending.deliver_due()
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert arrived.wait(20)
    sending.deliver_due()
    assert len(receiver.calls) == 1
    assert {fresh(slow).status, fresh(waiting).status} == {Status.DELIVERING, Status.PENDING}
    client().delete("default")
    go_on.set()
    thread.join()
    assert dispatch.waiting_messages("default") == 1  # for the one that waited
    sending.deliver_due()
    assert fresh(waiting).status == fresh(slow).status == Status.DELIVERED


# Swept, purged, and looked at


def test_sweep_enqueues_what_is_due_alone(end_task: EndTask, receiver: Receiver) -> None:
    receiver.replies = [Reply(500)]
    delivery = attempt(end_task())
    client().delete("default")
    sweep()
    assert dispatch.waiting_messages("default") == 0
    WebhookDelivery.objects.filter(pk=delivery.pk).update(due_at=timezone.now())
    sweep()
    assert dispatch.waiting_messages("default") == 1


def test_message_delivers(end_task: EndTask) -> None:
    delivery = end_task()
    deliver_webhooks()
    assert fresh(delivery).status == Status.DELIVERED


def test_ended_ones_are_purged_after_their_time_to_live(
    settings: Settings, end_task: EndTask, receiver: Receiver
) -> None:
    receiver.replies = [Reply(200), Reply(400), Reply(500)]
    delivered, failed, open_one = (attempt(end_task()) for _ in range(3))
    purge()
    assert WebhookDelivery.objects.count() == 3
    WebhookDelivery.objects.exclude(expires_at=None).update(expires_at=timezone.now())
    purge()
    assert list(WebhookDelivery.objects.all()) == [open_one]
    assert delivered.status != failed.status


def test_deleted_task_does_not_lose_its_webhook(
    api: APIClient, end_task: EndTask, receiver: Receiver
) -> None:
    delivery = end_task()
    assert api.delete(f"/api/v1/tasks/{delivery.task_id}").status_code == 204
    assert attempt(delivery).status == Status.DELIVERED
    assert receiver.calls[0].verified(CURRENT)["data"]["task_id"] == delivery.task_id


def test_report_tells_the_story(api: APIClient, end_task: EndTask, receiver: Receiver) -> None:
    receiver.replies = [Reply(500)]
    delivery = end_task()
    url = f"/api/v1/tasks/{delivery.task_id}/report"
    attempt(delivery)
    [before] = api.get(url).json()["webhook_deliveries"]
    assert before["next_attempt_at"] is not None
    attempt(delivery)
    [after] = api.get(url).json()["webhook_deliveries"]
    assert after | {"delivered_at": None, "log": None} == {
        "webhook_id": delivery.pk,
        "url": receiver.url(),
        "event": "task.completed",
        "status": "delivered",
        "num_attempts": 2,
        "next_attempt_at": None,
        "delivered_at": None,
        "log": None,
    }
    assert after["delivered_at"].endswith("Z")
    assert [entry["status_code"] for entry in after["log"]] == [500, 200]
    assert after["log"][0]["at"].endswith("Z")


def test_report_without_a_webhook_has_none(api: APIClient, new_task: NewTask) -> None:
    task = new_task()
    assert api.get(f"/api/v1/tasks/{task.pk}/report").json()["webhook_deliveries"] == []


def task_of(delivery: WebhookDelivery) -> GenerationTask:
    assert delivery.task is not None
    return delivery.task


def test_logs_name_the_host_alone(
    end_task: EndTask, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.replies = [Reply(500), Reply(act=lambda connection: connection.close())]
    delivery = end_task(receiver.url("/secret-path?token=hunter2"))
    task_id = task_of(delivery).pk
    for _ in range(3):
        delivery = attempt(delivery)
    ours = [each.getMessage() for each in caplog.records if each.name.startswith("inference")]
    lines = [line for line in ours if delivery.pk in line]
    assert len(lines) == 3
    assert all("127.0.0.1" in line and task_id in line for line in lines)
    everything = caplog.text + str(delivery.log)
    assert "hunter2" not in everything
    assert "secret-path" not in everything
    assert CURRENT.removeprefix("whsec_") not in everything


def test_admin_delivers_again(admin_client: Client, end_task: EndTask, receiver: Receiver) -> None:
    receiver.replies = [Reply(400)]
    delivery = attempt(end_task())
    assert delivery.status == Status.FAILED
    url = reverse("admin:inference_webhookdelivery_changelist")
    form = {"action": "deliver_again", "_selected_action": [delivery.pk]}
    page = admin_client.post(url, form, follow=True)
    assert "1 webhooks are delivered again" in page.content.decode()
    again = fresh(delivery)
    assert (again.status, again.attempt, again.expires_at) == (Status.PENDING, 1, None)
    assert again.give_up_at > delivery.give_up_at
    sending.deliver_due()
    assert fresh(delivery).status == Status.DELIVERED
    assert [call.webhook_id for call in receiver.calls] == [delivery.pk] * 2


def test_admin_leaves_one_under_way_alone(admin_client: Client, end_task: EndTask) -> None:
    end_task()
    taken = WebhookDelivery.objects.claim_next(worker_identity.current())
    assert taken is not None
    url = reverse("admin:inference_webhookdelivery_changelist")
    form = {"action": "deliver_again", "_selected_action": [taken.pk]}
    admin_client.post(url, form, follow=True)
    assert fresh(taken).status == Status.DELIVERING
    assert taken.succeed(ENTRY)


def test_admin_finds_webhooks_of_a_task(
    admin_client: Client, end_task: EndTask, receiver: Receiver
) -> None:
    delivery, other = end_task(receiver.url("/hook?token=hunter2")), end_task()
    url = reverse("admin:inference_webhookdelivery_changelist")
    task = task_of(delivery)
    page = admin_client.get(url, {"q": task.pk, "status": "pending"}).content.decode()
    assert delivery.pk in page
    assert other.pk not in page
    assert "hunter2" not in page
    task_id = task.pk
    task.delete()
    detail = reverse("admin:inference_webhookdelivery_change", args=[quote(delivery.pk)])
    assert task_id in admin_client.get(detail).content.decode()


def test_admin_shows_the_webhook_with_its_task(admin_client: Client, end_task: EndTask) -> None:
    delivery = end_task()
    detail = reverse("admin:inference_generationtask_change", args=[quote(task_of(delivery).pk)])
    assert delivery.pk in admin_client.get(detail).content.decode()
