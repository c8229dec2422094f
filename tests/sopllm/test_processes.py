"""Which of the environment's secrets each process of the service gets."""

import pytest
from pytest_django import Settings

from sopllm import processes
from sopllm.processes import SECRETS_OF, without_other_secrets

PROVIDER_KEYS = {"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MINE_API_KEY"}
ROWS = {"REDIS_URL", "DATABASE_URL"}
STORED_KEYS = {"SECRET_KEY", "ENCRYPTION_KEYS"}
TRACES = {"LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"}
ALL = (
    PROVIDER_KEYS
    | ROWS
    | STORED_KEYS
    | TRACES
    | {"WEBHOOK_SECRETS", "HF_TOKEN", "FLOWER_BASIC_AUTH"}
)


@pytest.mark.parametrize(
    ("process", "used"),
    [
        ("valkey", set()),
        ("web", ROWS | STORED_KEYS | TRACES | {"WEBHOOK_SECRETS"}),
        ("gpu", ROWS | TRACES),
        ("api", ROWS | STORED_KEYS | TRACES | PROVIDER_KEYS),
        ("default", ROWS | TRACES | {"WEBHOOK_SECRETS", "HF_TOKEN"}),
        ("embeddings", ROWS | STORED_KEYS | PROVIDER_KEYS),
        ("beat", {"REDIS_URL"}),
        ("flower", {"REDIS_URL", "FLOWER_BASIC_AUTH"}),
    ],
)
def test_process_has_the_secrets_that_it_uses(process: str, used: set[str]) -> None:
    environment = dict.fromkeys(ALL, "x") | {"PATH": "/bin", "LOG_LEVEL": "INFO"}
    left = environment | without_other_secrets(process, environment)
    assert {name for name, text in left.items() if text} == used | {"PATH", "LOG_LEVEL"}


def test_secret_of_a_file_stays_there() -> None:
    environment = {"OPENAI_API_KEY": "x", "OPENAI_API_KEY_FILE": "/run/secrets/openai"}
    assert without_other_secrets("api", environment) == {"OPENAI_API_KEY": ""}
    assert without_other_secrets("gpu", environment) == dict.fromkeys(environment, "")


def test_django_starts_everywhere_with_a_key_that_signs_for_nobody(settings: Settings) -> None:
    settings.APP_ENV = "production"
    own = {name: without_other_secrets(name, {"SECRET_KEY": "x"}) for name in SECRETS_OF}
    keys = {name: changed["SECRET_KEY"] for name, changed in own.items() if changed}
    assert set(keys) == set(SECRETS_OF) - {"web", "api", "embeddings"}
    assert min(map(len, keys.values())) >= 32


def test_each_group_of_gpus_has_a_worker(settings: Settings) -> None:
    [alone] = processes.gpu_workers()
    assert alone.name == "gpu worker"
    assert "GPU_INDEX" not in alone.env
    settings.GPU_WORKERS = ["0,1", "2"]
    pair, single = processes.gpu_workers()
    assert [pair.env["GPU_INDEX"], single.env["GPU_INDEX"]] == ["0,1", "2"]
    assert "gpu0-1@%h" in pair.command
    assert "gpu2@%h" in single.command
    assert pair.log_name != single.log_name
