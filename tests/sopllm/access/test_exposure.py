"""A service that other machines reach does not start without keys, whoever starts it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from sopllm.access import exposure
from sopllm.access.identity import is_loopback
from sopllm.access.models import ApiKey
from sopllm.management.commands import serve

EVERYWHERE = "0.0.0.0"  # noqa: S104 (it must not start)


def test_bare_server_stops(tmp_path: Path) -> None:
    process = subprocess.run(
        [
            *(sys.executable, "-m", "uvicorn", "sopllm.asgi:application"),
            *("--host", EVERYWHERE, "--port", "0"),
        ],
        env=os.environ | {"VAR_DIR": str(tmp_path)},
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert "create_api_key" in process.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)
    assert not is_loopback("192.168.1.5")
    assert not is_loopback("llm.example")


def test_serve_does_not_start(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SERVER_HOST", EVERYWHERE)
    monkeypatch.setattr(serve.Command, "check_redis", lambda *_: None)
    monkeypatch.setattr(serve.Command, "start_valkey", lambda *_: None)
    monkeypatch.setattr(serve.Command, "migrate", lambda _: None)
    with pytest.raises(CommandError, match="create_api_key"):
        call_command("serve")


def test_revoked_key_is_none(db: None) -> None:
    assert not exposure.has_keys()
    ApiKey.objects.make("alice", ["tasks"])
    assert exposure.has_keys()
    ApiKey.objects.revoke()
    assert not exposure.has_keys()
