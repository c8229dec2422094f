"""API keys in the admin, and who may act there."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from monitoring.api.principal import Scope
from monitoring.models import OwnerUse
from sopllm.access.models import ApiKey, digest_of

KEYS = "/admin/access/apikey/"


@pytest.fixture
def staff(client: Client, db: None) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


def test_new_key_is_shown_once(staff: Client) -> None:
    form = {"owner": "alice", "name": "laptop", "scopes": ["monitor", "tasks"], "max_priority": "5"}
    page = staff.post(f"{KEYS}add/", form, follow=True).content.decode()
    text = re.search(r"sopllm_[0-9a-f]{8}_[\w-]{43}", page)
    assert text
    principal = ApiKey.objects.find(digest_of(text[0]))
    assert principal
    assert principal.owner == "alice"
    assert principal.scopes == frozenset({Scope.TASKS, Scope.MONITOR})
    assert principal.limits.max_priority == 5
    key = ApiKey.objects.get()
    for path in (KEYS, f"{KEYS}{key.pk}/change/", f"{KEYS}{key.pk}/history/"):
        page = staff.get(path).content.decode()
        assert key.prefix in page
        assert text[0] not in page
        assert key.digest not in page


@pytest.mark.parametrize(
    "wrong",
    [
        {"owner": "local"},
        {"scopes": ["everything"]},
        {"scopes": []},
        {"max_priority": "101"},
        {"expires_at_0": "2020-01-01", "expires_at_1": "00:00:00"},
    ],
)
def test_form_refuses_what_no_key_may_be(staff: Client, wrong: dict[str, Any]) -> None:
    form = {"owner": "alice", "scopes": ["tasks"], **wrong}
    response = staff.post(f"{KEYS}add/", form)
    assert response.status_code == 200
    assert b"errorlist" in response.content
    assert not ApiKey.objects.exists()


def test_changed_key_keeps_its_owner_and_its_text(staff: Client) -> None:
    key, text = ApiKey.objects.make("alice", ["tasks"])
    form = {"owner": "bob", "scopes": ["admin"], "max_pending_tasks": "3"}
    assert staff.post(f"{KEYS}{key.pk}/change/", form).status_code == 302
    principal = ApiKey.objects.find(digest_of(text))
    assert principal
    assert principal.owner == "alice"
    assert principal.scopes == frozenset({Scope.ADMIN})
    assert principal.limits.max_pending_tasks == 3


def test_keys_are_revoked_by_who_may_change_them(client: Client, db: None) -> None:
    key, text = ApiKey.objects.make("alice", ["tasks"])
    user = User.objects.create_user("viewer", is_staff=True)
    form = {"action": "revoke", "_selected_action": [key.pk]}
    client.force_login(user)
    for permission, is_revoked in (("view_apikey", False), ("change_apikey", True)):
        user.user_permissions.add(Permission.objects.get(codename=permission))
        client.post(KEYS, form)
        assert (ApiKey.objects.find(digest_of(text)) is None) == is_revoked


def test_no_action_of_the_admin_is_for_viewers() -> None:
    acting = {"change", "delete", "act"}  # `act`: the change permission of rows that nobody edits
    model_admins: list[Any] = list(admin.site._registry.values())
    for model_admin in model_admins:
        for action, name, _ in model_admin._get_base_actions():
            allowed = set(getattr(action, "allowed_permissions", ()))
            assert allowed, (model_admin, name)
            assert allowed <= acting, (model_admin, name)


def test_pages_of_a_key_and_of_a_day_plot_what_the_owner_has_used(staff: Client) -> None:
    today = timezone.now().date()

    def used(owner: str, age: int, *numbers: int) -> OwnerUse:
        names = ("num_tasks", "prompt_tokens", "completion_tokens")
        fields = dict(zip(names, numbers, strict=True))
        return OwnerUse.objects.create(owner=owner, day=today - timedelta(days=age), **fields)

    use = used("alice", 0, 3, 1200, 34)
    used("alice", 6, 2, 10, 20)
    used("alice", 7, 77, 777, 777)
    used("bob", 0, 99, 999, 999)
    key, _ = ApiKey.objects.make("alice", ["tasks"])
    for path in (f"{KEYS}{key.pk}/change/", f"/admin/monitoring/owneruse/{use.pk}/change/"):
        page = staff.get(path).content.decode()
        [tokens, tasks] = re.findall(r'<svg [^>]* aria-label="([^"]*)"', page)
        assert tokens.count(" answer.") == tasks.count(" tasks.") == 7
        assert f"{today:%A, %B} {today.day}: 1,200 prompt, 34 answer." in tokens
        assert f"{today:%A, %B} {today.day}: 3 tasks." in tasks
        assert "Tokens: 1,264" in page
        assert "Tasks: 5" in page
        assert not {"777", "999"} & set(re.findall(r"\d+", tokens + tasks))
        assert "<style" not in page
        heights = [float(each) for each in re.findall(r'<rect [^>]*y="[^>]* height="(.*?)"', page)]
        assert len(heights) == 3 * 7
        assert max(heights) <= 90


def test_page_of_a_key_without_use_has_an_empty_plot(staff: Client) -> None:
    key, _ = ApiKey.objects.make("alice", ["tasks"])
    page = staff.get(f"{KEYS}{key.pk}/change/").content.decode()
    assert "Tokens: 0" in page


def test_nobody_changes_what_owners_have_used(staff: Client) -> None:
    OwnerUse.objects.create(
        owner="alice", day=timezone.now(), num_tasks=1, prompt_tokens=1, completion_tokens=1
    )
    path = "/admin/monitoring/owneruse/"
    assert staff.get(path).status_code == 200
    for action in ("add", f"{OwnerUse.objects.get().pk}/delete"):
        assert staff.post(f"{path}{action}/", {"post": "yes"}).status_code == 403
