"""Registers the models whose weights are installed as Python packages."""

from typing import Any

from django.core.management.base import BaseCommand

from inference import registration
from inference.models import RegisteredModel
from presets.packaged import PackagedPreset, packaged_presets


class Command(BaseCommand):
    help = "Register the models whose weights are installed as Python packages."

    def handle(self, *args: Any, **options: Any) -> None:
        known = set(RegisteredModel.objects.values_list("name", flat=True))
        for preset in packaged_presets():
            if preset.is_installed() and preset.name not in known:
                self.register(preset, verbosity=options["verbosity"])

    def register(self, preset: PackagedPreset, *, verbosity: int) -> None:
        """An incomplete package costs its own model only: the service starts without it."""
        try:
            preset.put_into_models_dir()
        except (OSError, ImportError, ValueError) as exc:
            self.stderr.write(f"The model {preset.name} is not registered: {exc}")
            return
        config = {"model_path": preset.filename, **preset.provider_config}
        registration.register(preset.name, RegisteredModel.Provider.LOCAL, config)
        if verbosity:
            self.stdout.write(f"Registered the model {preset.name}.")
