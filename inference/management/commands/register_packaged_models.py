"""Registers the models whose weights are installed as Python packages."""

from typing import Any

from django.core.management.base import BaseCommand
from rest_framework.exceptions import ValidationError

from inference.models import RegisteredModel
from inference.registry import preset_registration
from monitoring.api.errors import in_words
from presets import catalogue
from presets.models import Preset


class Command(BaseCommand):
    help = "Register the models whose weights are installed as Python packages."

    def handle(self, *args: Any, **options: Any) -> None:
        known = set(RegisteredModel.objects.values_list("name", flat=True))
        for preset in catalogue.packaged():
            if preset.name not in known and preset.is_here():
                self.register(preset, verbosity=options["verbosity"])

    def register(self, preset: Preset, *, verbosity: int) -> None:
        """An incomplete package costs its own model only: the service starts without it."""
        try:
            preset_registration.register(preset, preset.name, None, None)
        except ValidationError as exc:
            self.stderr.write(f"The model {preset.name} is not registered: {in_words(exc)}")
            return
        if verbosity:
            self.stdout.write(f"Registered the model {preset.name}.")
