from django.apps import AppConfig


class PresetsConfig(AppConfig):
    """The catalogue of known models."""

    name = "presets"
