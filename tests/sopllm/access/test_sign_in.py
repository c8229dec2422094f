"""People who sign in: the way to the sign-in, their session, its CSRF check, the lock-out."""

from typing import Any

import httpx
import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from pytest_django import Settings

from tests.sopllm.access.clients import close_to_strangers, request
from tests.sopllm.test_handler import talk

pytestmark = pytest.mark.django_db(transaction=True)

ME = "/api/v1/keys/me"
CONVERSATIONS = "/api/v1/conversations"
PAGE = {"Accept": "text/html,*/*"}


@pytest.fixture
def anna() -> dict[str, str]:
    """Her name and password; she is no member of the staff."""
    get_user_model().objects.create_user("anna", password="a long one")
    return {"username": "anna", "password": "a long one"}


def test_opening_a_page_without_access_leads_to_the_sign_in(settings: Settings) -> None:
    close_to_strangers(settings)
    response = request("GET", "/api/v1/tasks?limit=3", headers=PAGE)
    assert response.status_code == 302
    assert response.headers["location"] == "/login?next=%2Fapi%2Fv1%2Ftasks%3Flimit%3D3"
    assert request("POST", "/api/v1/tasks", headers=PAGE).status_code == 401
    assert request("GET", "/api/v1/tasks").status_code == 401


def test_user_signs_in_and_out(settings: Settings, anna: dict[str, str]) -> None:
    close_to_strangers(settings)
    settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = False

    async def conversation(client: httpx.AsyncClient) -> None:
        await client.get("/login")
        form = {**anna, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        response = await client.post("/login?next=/docs", data=form)
        assert (response.status_code, response.headers["location"]) == (302, "/docs")
        me = (await client.get(ME)).json()
        assert (me["owner"], me["scopes"], me["is_staff"]) == ("anna", ["tasks"], False)
        assert (await client.post(CONVERSATIONS, json={})).status_code == 403
        csrf = {"X-CSRFToken": client.cookies["csrftoken"]}
        assert (await client.post(CONVERSATIONS, json={}, headers=csrf)).status_code in (201, 400)
        response = await client.post("/logout", headers=csrf)
        assert (response.status_code, response.headers["location"]) == (302, "/login")
        assert (await client.get(ME)).status_code == 401

    talk(conversation)


@pytest.mark.parametrize("path", ["/login", "/admin/login/"])
def test_five_failures_lock_out_a_name_from_one_address(path: str, anna: dict[str, str]) -> None:
    def sign_in(address: str, **form: Any) -> int:
        return Client(REMOTE_ADDR=address).post(path, {**anna, **form}).status_code

    for _ in range(4):
        assert sign_in("192.0.2.1", password="wrong") == 200
    assert sign_in("192.0.2.1", password="wrong") == 429
    assert sign_in("192.0.2.1") == 429
    assert sign_in("192.0.2.1", username="bert") == 200
    assert sign_in("192.0.2.2") in (200, 302)


def test_sign_in_leads_to_no_other_site(anna: dict[str, str]) -> None:
    response = Client().post("/login?next=https://evil.example/", anna)
    assert (response.status_code, response["Location"]) == (302, "/")


@pytest.mark.parametrize("path", ["/", "/login", "/docs", "/redoc", "/admin/login/"])
def test_scripts_of_pages_come_from_here(path: str) -> None:
    directives = Client().get(path)["Content-Security-Policy"].split("; ")
    policy = {name: values for name, *values in (each.split() for each in directives)}
    scripts = policy.get("script-src", policy["default-src"])
    assert all(source == "'self'" or source.startswith("'nonce-") for source in scripts)
    assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == ["'none'"]


def test_json_has_no_policy() -> None:
    assert "Content-Security-Policy" not in Client().get("/openapi.json")
