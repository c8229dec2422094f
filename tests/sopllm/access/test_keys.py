"""API keys: made, listed, revoked."""

import re
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from rest_framework.test import APIClient

from monitoring.api.principal import LOCAL
from sopllm.access.models import KEY_PATTERN, ApiKey, digest_of

KEYS = "/api/v1/keys"


def test_new_key_is_shown_once_and_kept_as_a_digest(api: APIClient) -> None:
    made = api.post(
        KEYS, {"owner": "alice", "name": "laptop", "scopes": ["monitor", "tasks"]}, format="json"
    )
    assert made.status_code == 201
    text = made.json()["key"]
    assert KEY_PATTERN.fullmatch(text)
    key = ApiKey.objects.get()
    assert (key.digest, key.prefix) == (digest_of(text), text[7:15])
    for answer in (api.get(KEYS), api.get(f"{KEYS}/{key.prefix}")):
        assert text not in answer.content.decode()
        assert key.digest not in answer.content.decode()
    assert len(api.get(KEYS).json()["results"]) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("owner", each) for each in ("", "local", "Alice", "a b", "-a", 64 * "a", None)),
        *(("scopes", each) for each in ([], ["root"], "tasks", None)),
        *(("expires_at", each) for each in ("2020-01-01T00:00:00Z", "soon")),
        *(("max_priority", each) for each in (-1, 101, "NaN")),
        *(("max_running_tasks", each) for each in (0, 2**40)),
        ("requests_per_second", 0),
        ("max_tokens_per_day", -1),
        *(("max_usd_per_month", each) for each in (-1, 1e10, "NaN")),
        *(("max_open_streams", each) for each in (-1, 1.5, "many")),
        ("unknown", 1),
    ],
)
def test_bad_field_is_named(api: APIClient, field: str, value: Any) -> None:
    response = api.post(KEYS, {"owner": "alice", field: value}, format="json")
    assert response.status_code == 400, response.json()
    assert list(response.json()["details"]) == [field]
    assert not ApiKey.objects.exists()


def test_revoked_key_lets_in_nobody(api: APIClient) -> None:
    prefix = api.post(KEYS, {"owner": "alice"}, format="json").json()["prefix"]
    digest = ApiKey.objects.get().digest
    principal = ApiKey.objects.find(digest)
    assert principal is not None
    assert principal.owner == "alice"
    assert api.delete(f"{KEYS}/{prefix}").status_code == 204
    assert ApiKey.objects.find(digest) is None
    assert api.get(f"{KEYS}/{prefix}").json()["revoked_at"]
    assert api.delete(f"{KEYS}/00000000").status_code == 404


def test_use_is_recorded_by_the_minute(db: None) -> None:
    key, _ = ApiKey.objects.make("alice", ["tasks"])
    ApiKey.objects.find(key.digest)
    key.refresh_from_db()
    first_use = key.last_used_at
    assert first_use is not None
    ApiKey.objects.find(key.digest)
    key.refresh_from_db()
    assert key.last_used_at == first_use
    ApiKey.objects.update(last_used_at=timezone.now() - timedelta(seconds=61))
    ApiKey.objects.find(key.digest)
    key.refresh_from_db()
    assert key.last_used_at is not None
    assert key.last_used_at > first_use


def said(*arguments: str) -> str:
    output = StringIO()
    call_command(*arguments, stdout=output)
    return output.getvalue()


def test_command_makes_a_key_and_says_how_to_use_it(db: None) -> None:
    text = said("create_api_key", "alice", "--scopes", "tasks,monitor", "--expires", "90d")
    found = KEY_PATTERN.search(text)
    assert found
    key = ApiKey.objects.get(digest=digest_of(found[0]))
    assert (key.owner, key.scopes) == ("alice", ["monitor", "tasks"])
    assert key.expires_at is not None
    assert timedelta(days=89) < key.expires_at - timezone.now() < timedelta(days=91)
    assert f"curl -H 'Authorization: Bearer {found[0]}'" in text
    assert key.max_pending_tasks is None
    limits = ("--max-pending-tasks", "0", "--requests-per-second", "2.5")
    assert KEY_PATTERN.fullmatch(said("create_api_key", "bob", "--quiet", *limits).strip())
    key = ApiKey.objects.get(owner="bob")
    assert (key.max_pending_tasks, key.requests_per_second) == (0, 2.5)


@pytest.mark.parametrize(
    "arguments",
    [
        ["local"],
        ["Bob"],
        ["bob", "--scopes", "root"],
        ["bob", "--scopes", ""],
        *(["bob", "--max-running-tasks", number] for number in ("0", "some", "1.5")),
        *(["bob", "--expires", when] for when in ("2020-01-01T00:00Z", "soon", "2027-01-01", "9")),
    ],
)
def test_command_refuses_what_makes_no_key(db: None, arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        said("create_api_key", *arguments)


def test_command_revokes_a_key(db: None) -> None:
    key, text = ApiKey.objects.make("alice", ["tasks"])
    for name in (key.prefix, text):
        assert re.search(r"is revoked|revoked already", said("revoke_api_key", name))
    assert ApiKey.objects.find(key.digest) is None
    with pytest.raises(CommandError):
        said("revoke_api_key", "00000000")


def test_me_on_the_local_machine(api: APIClient) -> None:
    me = api.get(f"{KEYS}/me").json()
    assert (me["owner"], me["scopes"]) == (LOCAL.owner, ["admin", "monitor", "tasks"])
