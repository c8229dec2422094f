"""Registering models: where a file may lie, and what it must be."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from rest_framework.exceptions import ValidationError

from inference.engine.errors import InvalidGGUFError
from inference.model_serializers import EchoConfigSerializer, LocalConfigSerializer
from inference.models import RegisteredModel


class ModelExistsError(Exception):
    """The name is taken."""


def register(name: str, provider: str, config: dict[str, Any]) -> RegisteredModel:
    """Check the config for its provider and save the model.

    Raises ValidationError naming the field of `config`, and ModelExistsError.
    """
    try:
        fields = _FIELDS[RegisteredModel.Provider(provider)](config)
    except ValidationError as error:
        raise ValidationError({"config": error.detail}) from error
    try:
        with transaction.atomic():
            return RegisteredModel.objects.create(name=name, provider=provider, **fields)
    except IntegrityError:
        raise ModelExistsError(name) from None


def resolve_model_path(model_path: str) -> Path:
    """The file behind a `model_path`; ValueError unless it lies in MODELS_DIR, links followed."""
    models_dir = Path(settings.MODELS_DIR).resolve()
    try:
        path = (models_dir / model_path).resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise ValueError(f"{model_path} cannot be read: {error}") from error
    if not path.is_relative_to(models_dir):
        raise ValueError(f"{model_path} lies outside of MODELS_DIR: put the file in there.")
    if not is_file:
        raise ValueError(f"There is no file {model_path} in MODELS_DIR.")
    return path


def shares_file(model: RegisteredModel) -> str | None:
    """The name of another model whose weights are the same file."""
    path = _path_or_none(model)
    others = RegisteredModel.objects.filter(provider=model.provider).exclude(pk=model.pk)
    return next((other.name for other in others if path and _path_or_none(other) == path), None)


def _path_or_none(model: RegisteredModel) -> Path | None:
    try:
        return resolve_model_path(model.config["model_path"])
    except (KeyError, ValueError):
        return None


def delete_file(model: RegisteredModel) -> None:
    """Remove the file of a local model, if it is there and in MODELS_DIR."""
    if path := _path_or_none(model):
        path.unlink(missing_ok=True)


def _local_fields(config: dict[str, Any]) -> dict[str, Any]:
    # The header's parser is for this moment only; the web process does without it otherwise.
    from inference.engine.gguf_header import read_header

    config = LocalConfigSerializer().run_validation(config)
    try:
        path = resolve_model_path(config["model_path"])
        header = read_header(path)
    except (ValueError, InvalidGGUFError) as error:
        raise ValidationError({"model_path": [str(error)]}) from error
    trained = header.context_length or settings.N_CTX
    return {
        "config": config,
        "context_window": config.get("context_window") or min(trained, settings.N_CTX),
        "max_output_tokens": config.get("max_output_tokens"),
        "size_bytes": header.size_bytes,
        "extra": {
            "architecture": header.architecture,
            "parameters": header.num_parameters,
            "quantization": header.quantization,
            "context_length": header.context_length,
            "chat_template": header.chat_template,
        },
    }


def _echo_fields(config: dict[str, Any]) -> dict[str, Any]:
    config = EchoConfigSerializer().run_validation(config)
    return {"config": config, "max_output_tokens": config.get("max_output_tokens")}


_FIELDS = {
    RegisteredModel.Provider.LOCAL: _local_fields,
    RegisteredModel.Provider.ECHO: _echo_fields,
}
