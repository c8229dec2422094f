"""Registers the models whose weights are installed as Python packages."""

import os
import shutil
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from inference import registration
from inference.models import RegisteredModel
from presets.packaged import PackagedPreset, packaged_presets


class Command(BaseCommand):
    help = "Register the models whose weights are installed as Python packages."

    def handle(self, *args: Any, **options: Any) -> None:
        for preset in packaged_presets():
            source = preset.installed_file()
            if source and not RegisteredModel.objects.filter(name=preset.name).exists():
                _register(preset, source)
                if options["verbosity"]:
                    self.stdout.write(f"Registered the model {preset.name}.")


def _register(preset: PackagedPreset, source: Path) -> None:
    _place(source, Path(settings.MODELS_DIR) / preset.filename)
    config = {"model_path": preset.filename, **preset.provider_config}
    registration.register(preset.name, RegisteredModel.Provider.LOCAL, config)


def _place(source: Path, target: Path) -> None:
    """Put the file into MODELS_DIR: as a hard link, which costs nothing, or else as a copy."""
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)
