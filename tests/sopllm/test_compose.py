"""docker-compose.yml gives each process what `make run` gives it, and few rights."""

import re
from typing import Any

import pytest
import yaml
from django.conf import settings

from sopllm.env import SECRET
from sopllm.processes import SECRETS_OF

COMPOSE: dict[str, Any] = yaml.safe_load((settings.BASE_DIR / "docker-compose.yml").read_text())
PROCESSES = {
    "web": "web",
    "gpu-worker": "gpu",
    "gpu-worker-cpu": "gpu",
    "api-worker": "api",
    "default-worker": "default",
    "embeddings-worker": "embeddings",
    "beat": "beat",
    "flower": "flower",
}


@pytest.mark.parametrize(("service", "process"), PROCESSES.items())
def test_service_has_only_the_secrets_that_it_uses(service: str, process: str) -> None:
    environment: dict[str, str] = COMPOSE["services"][service]["environment"]
    secrets = {
        name for name, text in environment.items() if SECRET.fullmatch(name) and "${" in text
    }
    assert {name for name in secrets if not re.fullmatch(SECRETS_OF[process], name)} == set()
    assert "REDIS_URL" in secrets
    assert len(environment["SECRET_KEY"]) >= 32 or "SECRET_KEY" in secrets


def test_every_service_is_closed_in() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name


def test_redis_and_the_database_are_reached_by_the_service_alone() -> None:
    assert COMPOSE["networks"]["data"]["internal"]
    for name in ("valkey", "postgres"):
        service = COMPOSE["services"][name]
        assert service["networks"] == ["data"]
        assert "ports" not in service
        assert service["user"] == name


def test_web_has_time_to_end_its_requests() -> None:
    dockerfile = (settings.BASE_DIR / "Dockerfile").read_text()
    (drain,) = re.findall(r'"--timeout-graceful-shutdown", "(\d+)"', dockerfile)
    assert int(COMPOSE["services"]["web"]["stop_grace_period"].removesuffix("s")) > int(drain)
