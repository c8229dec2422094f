"""What belongs to one owner is not there for others; a view that names no scope is closed."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, get_resolver
from rest_framework.test import APIClient

from conversations.models import Conversation
from inference.lifecycle import finish
from inference.models import GenerationTask
from monitoring.api.permissions import accepted_scopes
from monitoring.api.principal import Principal, Scope
from monitoring.logs import service_log
from monitoring.redis import outbox
from tests.conftest import client_of
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed

NewTask = Callable[..., GenerationTask]

# The routes that need no key: pages without data, probes, the description of the API.
OPEN = {"", "login", "logout", "favicon.ico", "healthz", "readyz", "openapi.json", "docs", "redoc"}
MARKER = "only-for-bob"
ALL_SCOPES_BUT_MONITOR = frozenset({Scope.TASKS, Scope.ADMIN})
ALICE = Principal("a key", "alice", ALL_SCOPES_BUT_MONITOR)
STAFF = Principal("root", "root", frozenset(Scope), is_staff=True)
MESSAGE = {"role": "user", "content": "Hi"}


def routes() -> Iterator[tuple[str, Any]]:
    """The pattern and the view of all routes but those of the admin, which asks its own users."""

    def walk(patterns: list[Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for each in patterns:
            route = re.sub(r"^\^|/\?\$$", "", str(each.pattern))
            if isinstance(each, URLPattern):
                yield prefix + route, each.callback
            elif route != "admin/":
                yield from walk(each.url_patterns, prefix + route)

    return walk(get_resolver().url_patterns, "")


def methods_of(view: Any) -> dict[str, str]:
    """The action of each method, or the method itself where the view has no actions."""
    if actions := getattr(view, "actions", None):
        return {method: action for method, action in actions.items() if method != "head"}
    return {
        method: method
        for method in ("get", "post", "put", "patch", "delete")
        if hasattr(view.cls, method)
    }


def calls(name: str, number: str) -> Iterator[tuple[str, str]]:
    """The method and path of each route that has an id in the place of `name`."""
    for route, view in routes():
        if f"{name}/(" in route:
            path = re.sub(r"\(.*\)", number, route)
            yield from ((method, f"/{path}") for method in methods_of(view))


def call(client: APIClient, method: str, path: str) -> Any:
    text = "" if method == "get" else json.dumps(MESSAGE if "messages" in path else {})
    return client.generic(method.upper(), path, text, content_type="application/json")


def test_every_view_names_its_scopes_or_is_known_to_be_open(api: APIClient) -> None:
    num_views = 0
    for route, view in routes():
        if route in OPEN or route.startswith("static"):
            continue
        num_views += 1
        for method, action in methods_of(view).items():
            scopes = accepted_scopes(view.cls, action)
            assert scopes, f"{route} ({action}) names no scope"
            others = Principal("a key", "alice", frozenset(Scope) - scopes)
            path = "/" + re.sub(r"\(.*\)", 32 * "0", route)
            for prefix in ("tasks/", "conversations/"):
                short = prefix[:4]
                path = path.replace(f"{prefix}0", f"{prefix}{short}_0")
            path = path.replace(f"keys/{32 * '0'}", "keys/00000000")
            path = path.replace("batches/0", "batches/batch_0").replace("files/0", "files/file-0")
            refused = call(client_of(others), method, path)
            assert refused.status_code == 403, (method, path)
    assert num_views > 25


@pytest.fixture
def of_bob(new_task: NewTask) -> GenerationTask:
    """A task that bob has ended, with a conversation; another one is pending."""
    conversation = Conversation.objects.create(owner="bob", system_prompt=MARKER)
    conversation.append({"role": "user", "content": MARKER})
    fields: dict[str, Any] = {
        "owner": "bob",
        "conversation_id": conversation.pk,
        "metadata": {"of": MARKER},
    }
    lease = claimed(new_task(**fields))
    assert finish.complete(lease, answer(MARKER), TIMINGS)
    new_task(**fields, idempotency_key=MARKER)
    return lease.task


def test_id_of_somebody_else_is_not_found_on_any_route(
    api: APIClient, of_bob: GenerationTask
) -> None:
    alice = client_of(ALICE)
    num_calls = 0
    GenerationTask.objects.update(request=of_bob.request | {"response": {"store": True}})
    ids = {
        "tasks": of_bob.pk,
        "conversations": of_bob.conversation_id,
        "responses": of_bob.response_id,
    }
    for name, number in ids.items():
        for method, path in calls(name, str(number)):
            response = call(alice, method, path)
            assert response.status_code == 404, (method, path)
            assert MARKER not in response.content.decode(), (method, path)
            num_calls += 1
    assert num_calls > 10
    assert GenerationTask.objects.count() == 2
    assert Conversation.objects.get().messages.exists()


def test_no_list_shows_what_belongs_to_somebody_else(
    api: APIClient, of_bob: GenerationTask
) -> None:
    service_log.start("tested")
    assert outbox.flush(20)
    alice = client_of(ALICE)
    for route, view in routes():
        if route in OPEN or "(" in route or "get" not in methods_of(view):
            continue
        text = call(alice, "get", f"/{route}").content.decode()
        for secret in (MARKER, of_bob.pk, str(of_bob.conversation_id), '"bob"'):
            assert secret not in text, route
    queue = alice.get("/api/v1/monitor/queue").json()
    assert queue["totals"] == {"pending": 0, "processing": 0}
    bob = client_of(Principal("a key", "bob", frozenset({Scope.TASKS})))
    for client, num_ended in ((alice, 0), (bob, 1), (api, 1)):
        assert client.get("/api/v1/monitor/stats").json()["tasks"]["total"] == num_ended


def test_conversation_and_idempotency_key_of_somebody_else_are_unknown(
    api: APIClient, echo: object, of_bob: GenerationTask
) -> None:
    alice = client_of(ALICE)
    task = {"model": "echo", "prompt": "Hi"}
    unknown = task | {"conversation_id": of_bob.conversation_id}
    for path, body in (("", unknown), ("/batch", [unknown])):
        response = alice.post(f"/api/v1/tasks{path}", body, format="json")
        assert response.status_code == 400, response.json()
        assert "conversation_id" in response.content.decode()
    response = alice.post("/api/v1/tasks", task | {"idempotency_key": MARKER}, format="json")
    assert response.status_code == 201
    assert GenerationTask.objects.filter(idempotency_key=MARKER).count() == 2


def test_staff_reads_and_acts_for_all_owners(api: APIClient, of_bob: GenerationTask) -> None:
    staff = client_of(STAFF)
    pending = GenerationTask.objects.pending().get()
    listed = staff.get("/api/v1/tasks").json()["results"]
    assert {each["task_id"] for each in listed} == {of_bob.pk, pending.pk}
    assert len(staff.get("/api/v1/conversations").json()["results"]) == 1
    assert staff.get(f"/api/v1/tasks/{of_bob.pk}").status_code == 200
    assert staff.post(f"/api/v1/tasks/{pending.pk}/cancel").status_code == 200
    assert staff.delete(f"/api/v1/tasks/{of_bob.pk}").status_code == 204
    assert staff.delete(f"/api/v1/conversations/{of_bob.conversation_id}").status_code == 204


@pytest.mark.parametrize("route", ["tasks", "conversations"])
def test_lists_say_whose_rows_they_show_and_narrow_to_an_owner_for_staff_alone(
    api: APIClient, of_bob: GenerationTask, new_task: NewTask, route: str
) -> None:
    staff, path = client_of(STAFF), f"/api/v1/{route}"
    new_task("alice", conversation_id=Conversation.objects.create(owner="alice").pk)
    listed = staff.get(path).json()["results"]
    assert {each["owner"] for each in listed} == {"alice", "bob"}
    for owner in ("alice", "bob", "nobody"):
        page = staff.get(path, {"owner": owner}).json()["results"]
        assert page == [each for each in listed if each["owner"] == owner]
    number = listed[0].get("task_id") or listed[0]["conversation_id"]
    assert staff.get(f"{path}/{number}").json()["owner"] == listed[0]["owner"]
    for wrong in ("", "A b", "\0"):
        assert staff.get(path, {"owner": wrong}).status_code == 400, wrong
    alice = client_of(ALICE)
    [own] = alice.get(path).json()["results"]
    assert "owner" not in own
    number = own.get("task_id") or own["conversation_id"]
    assert "owner" not in alice.get(f"{path}/{number}").json()
    for owner in ("alice", "bob"):
        refused = alice.get(path, {"owner": owner})
        assert (refused.status_code, refused.json()["error"]) == (403, "permission_denied")


@pytest.mark.parametrize("query", [{}, {"owner": "bob"}])
@pytest.mark.parametrize("route", ["tasks", "conversations"])
def test_pages_of_lists_are_read_by_an_index(
    api: APIClient, of_bob: GenerationTask, route: str, query: dict[str, str]
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("the plan is SQLite's")
    with CaptureQueriesContext(connection) as captured:
        assert client_of(STAFF).get(f"/api/v1/{route}", query).json()["results"]
    queries = [each["sql"] for each in captured.captured_queries]
    [page] = [sql for sql in queries if '"created_at" DESC' in sql]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {page}")
        plan = " ".join(row[3] for row in cursor.fetchall())
    name = "task_list" if route == "tasks" else "conversation_list"
    assert f"USING INDEX {name if query else f'{name}_of_all'}" in plan
    assert "B-TREE FOR ORDER BY" not in plan
