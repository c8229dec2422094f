"""What people look at: the API's description, the browsable API, the admin."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import reverse
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema
from pytest_django import DjangoAssertNumQueries, Settings
from rest_framework.test import APIClient

from conversations.models import Conversation
from inference import lifecycle
from inference.models import RegisteredModel, TaskAttempt
from tests.conftest import wait_until_rung
from tests.test_lifecycle import TIMINGS, answer, claimed
from tests.test_tasks_api import NewTask

TASKS = "/api/v1/tasks"


@pytest.fixture
def schema() -> Iterator[Any]:
    GENERATOR_STATS.reset()
    generator: Any = SchemaGenerator
    yield generator().get_schema(request=None, public=True)
    GENERATOR_STATS.reset()


def test_description_is_valid_openapi(schema: Any, api: APIClient) -> None:
    validate: Any = validate_schema
    validate(schema)
    served = api.get("/openapi.json").json()
    assert served["openapi"].startswith("3.")
    assert set(served["paths"]) == set(schema["paths"])


def test_description_is_made_without_complaints(schema: Any) -> None:
    assert not GENERATOR_STATS._warn_cache
    assert not GENERATOR_STATS._error_cache


def test_description_names_every_route(schema: Any) -> None:
    found = {
        (method, re.sub(r"\{\w+\}", "{}", path))
        for path, operations in schema["paths"].items()
        for method in operations
        if method != "parameters"
    }
    assert found == {
        ("get", TASKS),
        ("post", TASKS),
        ("get", f"{TASKS}/{{}}"),
        ("delete", f"{TASKS}/{{}}"),
        ("get", f"{TASKS}/{{}}/report"),
        ("get", f"{TASKS}/{{}}/stream"),
        ("post", f"{TASKS}/{{}}/cancel"),
        ("post", f"{TASKS}/batch"),
        ("get", "/api/v1/models"),
        ("get", "/api/v1/models/{}"),
        ("delete", "/api/v1/models/{}"),
        ("post", "/api/v1/models/check-compatibility"),
        ("post", "/api/v1/models/load"),
        ("post", "/api/v1/models/unload"),
        ("post", "/api/v1/models/register"),
        ("get", "/api/v1/conversations"),
        ("post", "/api/v1/conversations"),
        ("get", "/api/v1/conversations/{}"),
        ("patch", "/api/v1/conversations/{}"),
        ("delete", "/api/v1/conversations/{}"),
        ("get", "/api/v1/conversations/{}/messages"),
        ("post", "/api/v1/conversations/{}/messages"),
        ("delete", "/api/v1/conversations/{}/messages"),
        ("get", "/api/v1/monitor/health"),
        ("get", "/api/v1/monitor/gpu"),
        ("get", "/api/v1/monitor/events"),
        ("get", "/api/v1/monitor/logs"),
        ("get", "/api/v1/monitor/queue"),
        ("get", "/api/v1/monitor/stats"),
        ("get", "/metrics"),
    }


def test_description_knows_the_fields_of_a_submission(schema: Any) -> None:
    content = schema["paths"][TASKS]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    properties = schema["components"]["schemas"][name]["properties"]
    assert {"model", "prompt", "messages", "temperature", "idempotency_key"} <= set(properties)


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/redoc", "/redoc/"])
def test_docs_load_local_assets_alone(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    page = response.content.decode()
    assets = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    files = [asset for asset in assets if asset.startswith("/static/")]
    assert files
    assert all(asset.startswith(("/", "data:")) for asset in assets), assets
    assert "//fonts." not in page
    for file in files:
        assert finders.find(file.removeprefix("/static/")), file


@pytest.mark.parametrize("path", ["/api/v1/", TASKS, "/api/v1/models"])
def test_browsable_api_shows_pages(api: APIClient, new_task: NewTask, path: str) -> None:
    new_task()
    response = api.get(path, headers={"Accept": "text/html"})
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/html")
    assert b"</html>" in response.content


def test_browsable_api_shows_a_task_and_its_report(api: APIClient, new_task: NewTask) -> None:
    task = new_task()
    for path in (f"{TASKS}/{task.pk}", f"{TASKS}/{task.pk}/report"):
        response = api.get(path, headers={"Accept": "text/html"})
        assert response.status_code == 200
        assert task.pk in response.content.decode()


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


@pytest.fixture
def _thirty_of_each(new_task: NewTask, settings: Settings) -> None:
    settings.WEBHOOK_ALLOWED_HOSTS = ["127.0.0.1"]
    for index in range(30):
        RegisteredModel.objects.create(name=f"model {index}", provider="echo")
        conversation = Conversation.objects.create(owner="local")
        conversation.append_turn("question", "answer")
        fields = {"conversation_id": conversation.pk, "webhook_url": "http://127.0.0.1:9/hook"}
        lifecycle.complete(claimed(new_task(**fields)), answer(), TIMINGS)


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
        assert first is not None or model._meta.app_label == "auth"
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
    lifecycle.complete(claimed(ended), answer(), TIMINGS)
    wait_until_rung()
    for task, status in ((pending, 403), (ended, 302)):
        url = reverse("admin:inference_generationtask_delete", args=[quote(task.pk)])
        assert staff.post(url, {"post": "yes"}).status_code == status
    assert not TaskAttempt.objects.exists()
