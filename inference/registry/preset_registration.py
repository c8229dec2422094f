"""Registering models from presets; the file is downloaded unless it is here."""

from typing import Any

from rest_framework.exceptions import ValidationError

from inference.loading import weights
from inference.models import RegisteredModel
from inference.registry import registration
from inference.registry.configs import ModelNameField
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
    if api_key and preset.source:
        message = f"{preset.name} runs here and needs no key: leave it out."
        raise ValidationError({"api_key": [message]})
    if quantization and quantization not in preset.files:
        choices = ", ".join(preset.files) or "one form only: leave it out"
        message = f"{preset.name} comes in {choices}."
        raise ValidationError({"quantization": [message]})
    is_from_hub = preset.source == Preset.Source.HUB
    config = preset.config(quantization if is_from_hub else None)
    if is_from_hub and not weights.resolve(config["model_path"]).exists():
        return _register_missing(preset, name, config)
    if packaged := preset.packaged_file:
        if not packaged.is_installed():
            message = f"The package {packaged.package} is not installed: run `make setup`."
            raise ValidationError({"preset_name": [message]})
        try:
            packaged.put_into_models_dir()
        except (OSError, ImportError, ValueError) as error:
            message = f"The package {packaged.package} cannot be used: {error}"
            raise ValidationError({"preset_name": [message]}) from error
    if api_key:
        config.pop("api_key_env_var", None)
        config["api_key"] = api_key
    try:
        return registration.register(name, preset.provider, config)
    except ValidationError as error:
        details: Any = error.detail
        # The request has no field `config`.
        raise ValidationError(details["config"]) from error


def _register_missing(preset: Preset, name: str, config: dict[str, Any]) -> RegisteredModel:
    """Register a model whose file is not downloaded yet, with the facts of its preset."""
    config = registration.check_config(preset.provider, config)
    filename = config["model_path"]
    origin = {"huggingface_repo": preset.huggingface_repo, "filename": filename}
    if preset.revision:
        origin["revision"] = preset.revision
    if sha256 := preset.sha256.get(preset.quantization_of(filename)):
        origin["sha256"] = sha256
    extra: dict[str, Any] = {"dimensions": preset.dimensions}
    if preset.kind != Preset.Kind.EMBEDDING:
        extra = {
            "parameters": int((preset.size_b or 0) * 1e9),
            "quantization": preset.quantization_of(filename),
        }
    return registration.create(
        name,
        preset.provider,
        config | origin,
        status=RegisteredModel.Status.REGISTERED,
        extra=extra,
    )
