"""The hashes of the files of models."""

import hashlib
import os
from pathlib import Path

import pytest
from django.conf import LazySettings

from inference.loading import file_hashes
from inference.models import ModelFile, RegisteredModel

pytestmark = pytest.mark.django_db


@pytest.fixture
def path(tmp_path: Path, settings: LazySettings) -> Path:
    settings.MODELS_DIR = tmp_path
    path = tmp_path / "folder" / "a.gguf"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    RegisteredModel.objects.create(
        name="a", provider="local", config={"model_path": "folder/a.gguf"}
    )
    return path


def test_file_is_hashed_once_until_it_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_hashes.hash_new_files()
    first = file_hashes.identity(path)
    assert (first["path"], first["size_bytes"]) == ("folder/a.gguf", 7)
    assert ModelFile.sha256_of(first) == hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(hashlib, "file_digest", None)  # it is not computed again
    file_hashes.hash_new_files()
    monkeypatch.undo()
    path.write_bytes(b"others!")
    os.utime(path, ns=(1, 1))
    second = file_hashes.identity(path)
    assert ModelFile.sha256_of(second) is None
    file_hashes.hash_new_files()
    assert ModelFile.sha256_of(second) == hashlib.sha256(b"others!").hexdigest()
    assert ModelFile.objects.count() == 2


def test_models_without_a_file_are_passed_over(path: Path) -> None:
    for name in ("b", "../c"):
        RegisteredModel.objects.create(name=name[-1], provider="local", config={"model_path": name})
    path.unlink()
    file_hashes.hash_new_files()
    assert not ModelFile.objects.exists()
