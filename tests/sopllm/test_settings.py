"""Readers of the environment, system checks, and the files that settings make."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from inference.webhooks.signing import is_secret
from sopllm.env import (
    env_bool,
    env_choice,
    env_float,
    env_int,
    env_ints,
    env_limit,
    env_list,
    env_path,
    env_str,
)

Reader = Callable[[], object]
NAME = "SOPLLM_TESTED"


@pytest.mark.parametrize(
    ("text", "read", "expected"),
    [
        (None, lambda: env_str(NAME, "x"), "x"),
        ("", lambda: env_str(NAME, "x"), "x"),
        ("  a b ", lambda: env_str(NAME, "x"), "a b"),
        (None, lambda: env_int(NAME, 7), 7),
        (" 12 ", lambda: env_int(NAME, 7), 12),
        ("-1", lambda: env_int(NAME, 7, -1), -1),
        ("2.5", lambda: env_float(NAME, 1.0), 2.5),
        ("3", lambda: env_float(NAME, 1.0), 3.0),
        (None, lambda: env_limit(NAME, int, 0, 9), None),
        ("0", lambda: env_limit(NAME, int, 0, 9), 0),
        ("2.5", lambda: env_limit(NAME, float, 0, 9), 2.5),
        (None, lambda: env_bool(NAME, True), True),
        ("Yes", lambda: env_bool(NAME, False), True),
        ("0", lambda: env_bool(NAME, True), False),
        ("OFF", lambda: env_bool(NAME, True), False),
        (None, lambda: env_list(NAME, ["x"]), ["x"]),
        (" a, ,b,", lambda: env_list(NAME, []), ["a", "b"]),
        (None, lambda: env_ints(NAME, [0], 0, 7), [0]),
        ("2, 0", lambda: env_ints(NAME, [0], 0, 7), [2, 0]),
        ("b", lambda: env_choice(NAME, "a", ("a", "b")), "b"),
        (None, lambda: env_choice(NAME, "a", ("a", "b")), "a"),
        ("/x/y", lambda: env_path(NAME, Path("/z")), Path("/x/y")),
        ("rel", lambda: env_path(NAME, Path("/z")), Path.cwd() / "rel"),
        ("~", lambda: env_path(NAME, Path("/z")), Path.home()),
    ],
)
def test_good_value_is_read(
    monkeypatch: pytest.MonkeyPatch, text: str | None, read: Reader, expected: object
) -> None:
    monkeypatch.delenv(NAME, raising=False)
    if text is not None:
        monkeypatch.setenv(NAME, text)
    assert read() == expected


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("x", lambda: env_int(NAME, 7)),
        ("1.5", lambda: env_int(NAME, 7)),
        ("-1", lambda: env_int(NAME, 7)),
        ("11", lambda: env_int(NAME, 7, 1, 10)),
        ("x", lambda: env_float(NAME, 1.0)),
        ("nan", lambda: env_float(NAME, 1.0)),
        ("inf", lambda: env_float(NAME, 1.0)),
        ("10", lambda: env_limit(NAME, int, 0, 9)),
        ("1.5", lambda: env_limit(NAME, int, 0, 9)),
        ("1,8", lambda: env_ints(NAME, [0], 0, 7)),
        ("1,x", lambda: env_ints(NAME, [0], 0, 7)),
        ("1,1", lambda: env_ints(NAME, [0], 0, 7)),
        ("maybe", lambda: env_bool(NAME, True)),
        ("c", lambda: env_choice(NAME, "a", ("a", "b"))),
    ],
)
def test_bad_value_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, text: str, read: Reader
) -> None:
    monkeypatch.setenv(NAME, text)
    with pytest.raises(ImproperlyConfigured, match=NAME) as caught:
        read()
    assert text in str(caught.value)


def ids() -> set[str | None]:
    return {message.id for message in run_checks()}


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"APP_ENV": "production", "SECRET_KEY": 31 * "s"}, "sopllm.E001"),
        ({"APP_ENV": "production", "ALLOWED_HOSTS": ["*"]}, "sopllm.E010"),
        ({"REDIS_URL": "http://localhost:6379"}, "sopllm.E002"),
        ({"REDIS_URL": "localhost:6379"}, "sopllm.E002"),
        ({"ENCRYPTION_KEYS": [40 * "k", "short"]}, "sopllm.E004"),
        ({"WEBHOOK_SECRETS": ["whsec_short"]}, "sopllm.E005"),
        ({"WEBHOOK_ALLOWED_HOSTS": ["a.example", "http://b.example"]}, "sopllm.E008"),
        ({"N_BATCH": 8192, "N_CTX": 4096}, "sopllm.W001"),
        ({"LANGFUSE_PUBLIC_KEY": "pk"}, "sopllm.E006"),
        ({"LANGFUSE_SECRET_KEY": "sk"}, "sopllm.E006"),
        (
            {"LANGFUSE_PUBLIC_KEY": "p", "LANGFUSE_SECRET_KEY": "s", "LANGFUSE_HOST": "lf:3000"},
            "sopllm.E007",
        ),
    ],
)
def test_setting_that_would_fail_later_is_told_at_once(
    settings: Settings, changes: dict[str, Any], check: str
) -> None:
    assert ids() == set()
    for name, value in changes.items():
        setattr(settings, name, value)
    assert ids() == {check}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(settings: Settings, host: str) -> None:
    settings.SERVER_HOST = host
    assert ids() == set()


def test_unknown_database_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql://localhost/x")
    assert ids() == {"sopllm.E003"}


def test_sqlite_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    is_used = django_settings.DATABASES["default"]["ENGINE"] == "sopllm.sqlite"
    assert ids() == ({"sopllm.E009"} if is_used else set())


def load_settings(
    shown: str = "settings.SECRET_KEY", **env: str
) -> subprocess.CompletedProcess[str]:
    code = f"from django.conf import settings; print({shown})"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "sopllm.settings"} | env,
        cwd=django_settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )


def test_new_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    load_settings(VAR_DIR=str(tmp_path / "var"))
    assert stat.S_IMODE((tmp_path / "var").stat().st_mode) == 0o700


def test_secret_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    first, again = (load_settings(VAR_DIR=str(tmp_path)).stdout.strip() for _ in range(2))
    file = tmp_path / "secret_key"
    assert len(first) >= 50
    assert first == again == file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_secret_may_be_in_a_file(tmp_path: Path) -> None:
    for name, text in (("key", "a" * 32), ("other", "b" * 32), ("empty", "")):
        (tmp_path / name).write_text(f"{text}\n")
    env = {"VAR_DIR": str(tmp_path / "var"), "APP_ENV": "production"}
    given = load_settings(**env, SECRET_KEY_FILE=str(tmp_path / "key"))
    assert given.stdout.strip() == "a" * 32
    shown = "settings.DEBUG or __import__('os').environ['GROQ_API_KEY']"
    named = load_settings(shown, **env, SECRET_KEY="s", GROQ_API_KEY_FILE=str(tmp_path / "other"))
    assert named.stdout.strip() == "b" * 32
    for variables, says in (
        ({"SECRET_KEY": "c", "SECRET_KEY_FILE": str(tmp_path / "key")}, "are both set"),
        ({"SECRET_KEY_FILE": str(tmp_path / "empty")}, "is empty"),
        ({"SECRET_KEY_FILE": str(tmp_path / "gone")}, "cannot be read"),
    ):
        stopped = load_settings(**env, **variables)
        assert stopped.returncode != 0
        assert says in stopped.stderr
        assert "a" * 32 not in stopped.stderr


def test_webhook_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    shown = "*settings.WEBHOOK_SECRETS"
    first, again = (load_settings(shown, VAR_DIR=str(tmp_path)).stdout.strip() for _ in range(2))
    file = tmp_path / "webhook_secret"
    assert is_secret(first)
    assert first == again == file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_webhook_secrets_are_made_for_nobody_in_production(tmp_path: Path) -> None:
    env = {"VAR_DIR": str(tmp_path), "APP_ENV": "production", "SECRET_KEY": "s"}
    assert load_settings("settings.WEBHOOK_SECRETS", **env).stdout.strip() == "[]"
    given = load_settings("*settings.WEBHOOK_SECRETS", **env, WEBHOOK_SECRETS="a, b")
    assert given.stdout.split() == ["a", "b"]
    assert not (tmp_path / "webhook_secret").exists()


def test_bad_secret_is_told_without_it(settings: Settings) -> None:
    settings.WEBHOOK_SECRETS = ["whsec_hunter2"]
    [message] = run_checks()
    assert "hunter2" not in str(message)


def test_bad_setting_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    process = load_settings(VAR_DIR=str(tmp_path), LEASE_SECONDS="soon")
    assert process.returncode != 0
    assert "LEASE_SECONDS must be a whole number, not 'soon'" in process.stderr


def test_production_needs_a_secret_key(tmp_path: Path) -> None:
    process = load_settings(VAR_DIR=str(tmp_path), APP_ENV="production")
    assert process.returncode != 0
    assert "SECRET_KEY is not set: give it" in process.stderr
    assert load_settings(VAR_DIR=str(tmp_path), APP_ENV="production", SECRET_KEY="s").stdout
