"""The admin: that it is quick with many rows, and what can be done in it."""

import re
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.db.models import Model
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from conversations.models import Conversation, Message
from inference import estimates, forecast
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import finish
from inference.lifecycle.finish import Timings
from inference.models import (
    Batch,
    GenerationTask,
    RegisteredModel,
    StoredFile,
    TaskAttempt,
    WebhookDelivery,
)
from presets import catalogue
from tests.conftest import wait_until_enqueued
from tests.inference.api.test_tasks import NewTask
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed


@pytest.fixture
def staff(client: Client, db: None) -> Client:
    client.force_login(User.objects.create_superuser("root", password="long enough"))
    return client


def test_admin_can_be_entered(client: Client, db: None) -> None:
    User.objects.create_superuser("root", password="long enough")
    page = client.get("/admin/", follow=True)
    assert page.status_code == 200
    assert b"password" in page.content
    form = {"username": "root", "password": "long enough", "next": "/admin/"}
    entered = client.post("/admin/login/", form, follow=True)
    assert entered.status_code == 200
    assert b"Registered models" in entered.content


def test_who_may_only_view_has_no_actions(client: Client, new_task: NewTask) -> None:
    task = new_task()
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename="view_generationtask"))
    client.force_login(viewer)
    url = reverse("admin:inference_generationtask_changelist")
    form = {"action": "cancel_tasks", "_selected_action": [task.pk]}
    assert b"cancel_tasks" not in client.get(url).content
    client.post(url, form)
    task.refresh_from_db()
    assert task.status == "pending"
    viewer.user_permissions.add(Permission.objects.get(codename="change_generationtask"))
    client.post(url, form)
    task.refresh_from_db()
    assert task.status == "cancelled"


@pytest.fixture
def _thirty_of_each(new_task: NewTask, settings: Settings) -> None:
    settings.WEBHOOK_ALLOWED_HOSTS = ["127.0.0.1"]
    catalogue.load()
    now = timezone.now()
    for index in range(30):
        StoredFile.objects.create(filename=f"file {index}", created_at=now)
        Batch.objects.create(created_at=now, deadline_at=now)
        RegisteredModel.objects.create(name=f"model {index}", provider="echo")
        conversation = Conversation.objects.create(owner="local")
        conversation.append({"role": "user", "content": "question"})
        conversation.append({"role": "assistant", "content": "answer"})
        fields = {"conversation_id": conversation.pk, "webhook_url": "http://127.0.0.1:9/hook"}
        finish.complete(claimed(new_task(**fields)), answer(), TIMINGS)


@pytest.mark.usefixtures("valkey")
def test_task_that_waits_says_when_it_is_expected_to_start_and_end(
    staff: Client, new_task: NewTask
) -> None:
    forecast.unlearn()
    finish.complete(claimed(new_task()), answer(), Timings(ttft_ms=100, inference_ms=60_000))
    task = new_task()
    forecast.refresh()
    estimates.forget()
    page = staff.get(reverse("admin:inference_generationtask_change", args=[quote(task.pk)]))
    forecast.unlearn()
    shown = page.content.decode()
    assert "Expected to start and end:" in shown
    assert re.search(r"\d and .* UTC, ends in [1-9]\d* to [1-9]\d* s", shown)


@pytest.mark.usefixtures("_thirty_of_each")
def test_admin_lists_take_few_queries(
    staff: Client, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for model in admin.site._registry:
        url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
        with django_assert_max_num_queries(15):
            response = staff.get(url)
        assert response.status_code == 200, url
        first = model._default_manager.order_by("pk").first()
        assert first is not None or model._meta.app_label in ("auth", "access")
        if first is not None:
            detail = reverse(
                f"admin:{model._meta.app_label}_{model._meta.model_name}_change",
                args=[quote(first.pk)],
            )
            assert staff.get(detail).status_code == 200


def test_admin_cancels_tasks_and_changes_none(staff: Client, new_task: NewTask) -> None:
    task = new_task()
    url = reverse("admin:inference_generationtask_changelist")
    form = {"action": "cancel_tasks", "_selected_action": [task.pk]}
    assert staff.post(url, form, follow=True).status_code == 200
    task.refresh_from_db()
    assert task.status == "cancelled"
    change = reverse("admin:inference_generationtask_change", args=[quote(task.pk)])
    assert staff.post(change, {"status": "completed"}).status_code == 403
    assert staff.get(reverse("admin:inference_generationtask_add")).status_code == 403


def test_admin_deletes_ended_tasks_alone(staff: Client, new_task: NewTask) -> None:
    pending, ended = new_task(), new_task()
    finish.complete(claimed(ended), answer(), TIMINGS)
    wait_until_enqueued()
    for task, status in ((pending, 403), (ended, 302)):
        url = reverse("admin:inference_generationtask_delete", args=[quote(task.pk)])
        assert staff.post(url, {"post": "yes"}).status_code == status
    assert not TaskAttempt.objects.exists()


def list_url(model: type[Model]) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


@pytest.fixture
def _ten_thousand_tasks(_thirty_of_each: None) -> None:
    """With an attempt, a webhook and a message of a dialogue each."""
    now = timezone.now()
    task = GenerationTask.objects.order_by("pk")[0]
    conversation = Conversation.objects.order_by("pk")[0]
    rows = []
    for index in range(10_000):
        task.pk = f"task_{index:032}"
        rows.append(GenerationTask(**{f.attname: getattr(task, f.attname) for f in fields(task)}))
    GenerationTask.objects.bulk_create(rows)
    attempt = {"number": 1, "model_name": "echo", "worker": "host:1", "outcome": "completed"}
    TaskAttempt.objects.bulk_create(
        TaskAttempt(task=row, started_at=now, ended_at=now, **attempt) for row in rows
    )
    delivery = WebhookDelivery.objects.order_by("pk")[0]
    WebhookDelivery.objects.bulk_create(
        WebhookDelivery(
            **{f.attname: getattr(delivery, f.attname) for f in fields(delivery)}
            | {"id": f"whk_{index:032}"}
        )
        for index in range(10_000)
    )
    Message.objects.bulk_create(
        Message(conversation=conversation, role="user", content="text") for _ in range(10_000)
    )


def fields(row: Model) -> list[Any]:
    return list(row._meta.concrete_fields)


@pytest.mark.usefixtures("_ten_thousand_tasks")
def test_admin_needs_no_more_queries_for_ten_thousand_rows(
    staff: Client, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    many = (GenerationTask, TaskAttempt, WebhookDelivery, Conversation)
    for model in many:
        with django_assert_max_num_queries(15):
            assert staff.get(list_url(model)).status_code == 200
        with django_assert_max_num_queries(15):
            assert staff.get(list_url(model), {"q": "task_0"}).status_code == 200
        row = model._default_manager.order_by("-pk")[0]
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
        with django_assert_max_num_queries(15):
            assert staff.get(reverse(name, args=[quote(row.pk)])).status_code == 200


def test_admin_runs_a_failed_task_again_from_its_first_model_on(
    staff: Client, new_task: NewTask
) -> None:
    RegisteredModel.objects.create(name="second", provider="echo", max_output_tokens=7)
    failed, pending = new_task(fallback_models=["second"], temperature=0.5), new_task()
    failure = InferenceError("Down.", ErrorCode.PROVIDER_UNAVAILABLE)
    for _ in range(2):
        finish.fail(claimed(failed), failure, None, Timings())
    form = {"action": "run_again", "_selected_action": [failed.pk, pending.pk]}
    assert staff.post(list_url(GenerationTask), form, follow=True).status_code == 200
    known = (failed.pk, pending.pk)
    [task] = GenerationTask.objects.exclude(pk__in=known)
    assert (task.status, task.attempt, task.model_name) == ("pending", 0, "echo")
    assert task.request == failed.request | {"num_retries": 0}
    failed.refresh_from_db()
    assert (failed.status, failed.model_name) == ("failed", "second")


def test_admin_loads_models_and_downloads_those_that_are_not_here(staff: Client) -> None:
    models = RegisteredModel.objects
    here = models.create(name="here", provider="local", size_bytes=5 * 1024**2)
    to_come = models.create(
        name="to-come",
        provider="local",
        status=RegisteredModel.Status.REGISTERED,
        config={"huggingface_repo": "a/b", "filename": "b.gguf", "model_path": "b.gguf"},
    )
    action = {"action": "load_models", "_selected_action": [here.pk, to_come.pk]}
    page = staff.post(list_url(RegisteredModel), action, follow=True).content.decode()
    assert "Asked to load 1 local models." in page
    assert "1 are downloaded first." in page
    assert "5.0\xa0MB" in page
    here.refresh_from_db()
    to_come.refresh_from_db()
    assert (here.status, here.requested) == ("available", "load")
    assert (to_come.status, to_come.requested) == ("downloading", "")


def test_admin_shows_a_dialogue(staff: Client) -> None:
    conversation = Conversation.objects.create(owner="local", system_prompt="Be brief.")
    conversation.append({"role": "user", "content": "<b>Who?</b>"})
    conversation.append({"role": "assistant", "content": "You."})
    url = reverse("admin:conversations_conversation_change", args=[quote(conversation.pk)])
    page = staff.get(url).content.decode()
    assert page.index("&lt;b&gt;Who?&lt;/b&gt;") < page.index("You.</div>")
    assert "Be brief." in page
    form = {"model_name": "echo", "system_prompt": "Be long.", "metadata": "{}"}
    assert staff.post(url, form).status_code == 302
    conversation.refresh_from_db()
    assert (conversation.model_name, conversation.system_prompt) == ("echo", "Be long.")
    assert conversation.messages.count() == 2
