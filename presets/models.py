"""The catalogue of models that are one call away from being registered."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models

from presets.packaged import PackagedFile

_COMMIT = re.compile("[0-9a-f]{40}")


class Preset(models.Model):
    """A model and how to register it.

    Rows come from the YAML files of the catalogue. One that was edited in the admin stays as it is
    when they are loaded again.
    """

    class Kind(models.TextChoices):
        LOCAL = "local"
        CLOUD = "cloud"
        EMBEDDING = "embedding"

    class Source(models.TextChoices):
        NONE = "", "none"  # it runs elsewhere
        HUB = "hub"
        PACKAGE = "package"

    name = models.CharField(max_length=100, unique=True)
    kind = models.CharField(max_length=9, choices=Kind.choices)
    provider = models.CharField(max_length=20)
    description = models.CharField(max_length=500, blank=True)
    license = models.CharField(max_length=200, blank=True)
    source = models.CharField(max_length=7, choices=Source.choices, default=Source.NONE, blank=True)
    huggingface_repo = models.CharField(max_length=200, blank=True)
    revision = models.CharField(max_length=100, blank=True)
    package = models.CharField(max_length=100, blank=True)
    in_parts = models.BooleanField(default=False)
    filename = models.CharField(max_length=255, blank=True)
    # By quantization; `filename` is what is taken unless one is named.
    files = models.JSONField(default=dict, blank=True)
    sha256 = models.JSONField(default=dict, blank=True)  # of `files`, by quantization too
    size_b = models.FloatField(null=True, blank=True)
    vram_requirements = models.JSONField(default=dict, blank=True)
    dimensions = models.PositiveIntegerField(null=True, blank=True)
    api_key_env_var = models.CharField(max_length=100, blank=True)
    provider_config = models.JSONField(default=dict, blank=True)
    is_edited = models.BooleanField(default=False, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["kind", "name"]

    def __str__(self) -> str:
        return self.name

    def config(self, quantization: str | None = None) -> dict[str, Any]:
        """What its registration takes; `quantization` is one of `files`, by default `filename`."""
        config = dict(self.provider_config)
        if self.source and self.filename:
            config["model_path"] = self.files[quantization] if quantization else self.filename
        elif self.source:
            config["package"] = self.package
        elif self.api_key_env_var:
            config["api_key_env_var"] = self.api_key_env_var
        return config

    @property
    def unpinned(self) -> bool:
        """Whether the hub may send another file one day: no commit is named, nor all hashes."""
        is_pinned = _COMMIT.fullmatch(self.revision) or self.files.keys() <= self.sha256.keys()
        return self.source == self.Source.HUB and not is_pinned

    def is_here(self) -> bool:
        """Whether its weights are installed, or one of its files is in MODELS_DIR."""
        if self.source == self.Source.PACKAGE:
            return find_spec(self.package) is not None
        filenames = {self.filename, *self.files.values()}
        return any((Path(settings.MODELS_DIR) / filename).is_file() for filename in filenames)

    def quantization_of(self, filename: str) -> str | None:
        """That of one of its `files`."""
        return next((name for name, file in self.files.items() if file == filename), None)

    @property
    def packaged_file(self) -> PackagedFile | None:
        """Its weights, if they come as a Python package."""
        if self.source != self.Source.PACKAGE or not self.filename:
            return None
        return PackagedFile(self.package, self.filename, self.in_parts)
