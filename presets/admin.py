from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest

from presets import catalogue
from presets.models import Preset

_OBJECTS = {"files", "sha256", "vram_requirements", "provider_config"}
_HELP = {
    "provider_config": "What its registration takes as config, as JSON.",
    "source": "hub: a file of huggingface_repo. package: an installed Python package has it.",
    "in_parts": "The package holds the file in parts, and has a function that puts it together.",
    "filename": "Of a package, or of the hub where no quantization is asked for.",
    "files": 'By quantization: {"Q4_K_M": "model-Q4_K_M.gguf"}.',
    "sha256": "Of each file, by quantization: what arrives is checked by it.",
    "size_b": "Billions of parameters.",
    "vram_requirements": 'Megabytes by quantization, with one window: {"Q4_K_M": 5200}.',
    "api_key_env_var": "The variable of the worker's environment that has the key.",
}


class PresetForm(forms.ModelForm[Preset]):
    """Checked as an entry of the catalogue is."""

    class Meta:
        help_texts = _HELP
        labels = {"size_b": "Size", "vram_requirements": "VRAM requirements"}
        widgets = {name: forms.Textarea(attrs={"rows": 4}) for name in sorted(_OBJECTS)}

    def clean(self) -> dict[str, Any]:
        fields: dict[str, Any] = super().clean() or {}
        for name in _OBJECTS & fields.keys():
            fields[name] = fields[name] or {}
        if kind := fields.get("kind"):
            filled = {n: v for n, v in fields.items() if v not in (None, "", {}) and v is not False}
            entry = {name: value for name, value in filled.items() if name != "kind"}
            for problem in catalogue.examine(kind, entry)[1]:
                # `field.part: what` is shown at the field.
                path, _, what = problem.partition(": ")
                field, _, part = path.partition(".")
                if field in self.fields:
                    self.add_error(field, ValidationError(f"{part}: {what}" if part else what))
                else:
                    self.add_error(None, ValidationError(problem))
        return fields


@admin.register(Preset)
class PresetAdmin(admin.ModelAdmin[Preset]):
    form = PresetForm
    fieldsets = (
        (None, {"fields": ("name", "kind", "provider", "description", "license")}),
        ("Registration", {"fields": ("provider_config",)}),
        (
            "Weights, if they are to be had as a file",
            {
                "fields": (
                    *("source", "huggingface_repo", "revision", "package", "in_parts"),
                    *("filename", "files", "sha256", "size_b", "vram_requirements"),
                )
            },
        ),
        ("Cloud models", {"fields": ("api_key_env_var",)}),
        ("Embedding models", {"fields": ("dimensions",)}),
    )
    list_display = ("name", "kind", "provider", "source", "size_b", "dimensions", "is_edited")
    list_filter = ("kind", "provider", "source", "is_edited")
    search_fields = ("name", "description", "huggingface_repo")
    actions = ("back_to_the_catalogue",)

    def save_model(self, request: HttpRequest, preset: Preset, form: Any, change: bool) -> None:
        """From now on the files of the catalogue leave it alone."""
        preset.is_edited = True
        super().save_model(request, preset, form, change)

    @admin.action(description="Back to what the catalogue says", permissions=["change"])
    def back_to_the_catalogue(self, request: HttpRequest, presets: QuerySet[Preset]) -> None:
        presets.update(is_edited=False)
        for problem in catalogue.load().problems:
            messages.warning(request, problem)
        messages.success(request, "As the catalogue has them; what it does not have is gone.")
