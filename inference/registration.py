"""Registering models: where a file may lie, what it must be, and what a provider must be told."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from rest_framework.exceptions import ValidationError

from inference import secret_box
from inference.engine.errors import InvalidGGUFError
from inference.model_configs import (
    CloudConfigSerializer,
    EchoConfigSerializer,
    LocalConfigSerializer,
)
from inference.models import RegisteredModel
from inference.providers.api_keys import DEFAULT_ENV_VARS
from inference.providers.registry import provider_class


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


def _cloud_fields(provider: RegisteredModel.Provider, config: dict[str, Any]) -> dict[str, Any]:
    """The key is taken out of the config, which everyone may read."""
    config = CloudConfigSerializer().run_validation(config)
    _check_model_name(provider, config["model_name"])
    _check_base_url(provider, config)
    _check_generation_params(provider, config)
    api_key = config.pop("api_key", "")
    if not api_key and "api_key_env_var" not in config and provider in DEFAULT_ENV_VARS:
        config["api_key_env_var"] = DEFAULT_ENV_VARS[provider]
    return {
        "config": config,
        "sealed_api_key": secret_box.seal(api_key) if api_key else "",
        "context_window": config.get("context_window"),
        "max_output_tokens": config.get("max_output_tokens"),
    }


def _check_model_name(provider: RegisteredModel.Provider, model_name: str) -> None:
    """LiteLLM finds the provider by what is before the slash; for the others it is known."""
    if provider == RegisteredModel.Provider.LITELLM and "/" not in model_name:
        message = "Name the provider too, as in groq/llama-3.3-70b: docs.litellm.ai lists them."
        raise ValidationError({"model_name": [message]})
    if provider in DEFAULT_ENV_VARS and model_name.startswith(f"{provider}/"):
        message = f"Leave out {provider}/: the provider is named already."
        raise ValidationError({"model_name": [message]})


def _check_base_url(provider: RegisteredModel.Provider, config: dict[str, Any]) -> None:
    if provider == RegisteredModel.Provider.OPENAI_COMPATIBLE and "base_url" not in config:
        message = "Say where the server is, such as http://127.0.0.1:8080/v1."
        raise ValidationError({"base_url": [message]})


def _check_generation_params(provider: RegisteredModel.Provider, config: dict[str, Any]) -> None:
    """Like a task's own, unless they are to be dropped."""
    params = config.get("generation_params", {})
    given = {name for name, value in params.items() if value is not None}
    unsupported = sorted(given & provider_class(provider).unsupported_params)
    if unsupported and not config.get("drop_params"):
        message = f"{provider} has no such parameter: leave it out, or set drop_params."
        raise ValidationError({"generation_params": {name: [message] for name in unsupported}})


_FIELDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    RegisteredModel.Provider.LOCAL: _local_fields,
    RegisteredModel.Provider.ECHO: _echo_fields,
    **{provider: partial(_cloud_fields, provider) for provider in RegisteredModel.CLOUD_PROVIDERS},
}
