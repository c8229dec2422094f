"""Registering models: where a file may lie, what it must be, and what a provider must be told."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from inference import encryption
from inference.engine.errors import InvalidGGUFError
from inference.loading import embedding_weights, models_dir
from inference.models import RegisteredModel
from inference.providers.api_keys import DEFAULT_ENV_VARS
from inference.providers.registry import provider_class
from inference.registry.configs import (
    CloudConfigSerializer,
    EchoConfigSerializer,
    LocalConfigSerializer,
)
from inference.registry.embedding_config import EmbeddingConfigSerializer


class ModelExistsError(Exception):
    """The name is taken."""


def register(name: str, provider: str, config: dict[str, Any]) -> RegisteredModel:
    """Check the config for its provider and save the model.

    Raises ValidationError naming the field of `config`, and ModelExistsError.
    """
    try:
        fields = _FIELDS[RegisteredModel.Provider(provider)](check_config(provider, config))
    except ValidationError as error:
        raise ValidationError({"config": error.detail}) from error
    try:
        with transaction.atomic():
            return RegisteredModel.objects.create(name=name, provider=provider, **fields)
    except IntegrityError:
        raise ModelExistsError(name) from None


def check_config(provider: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config as it is kept, checked without a look at the files that it names.

    Raises ValidationError naming the field.
    """
    kind = RegisteredModel.Provider(provider)
    config = _SERIALIZERS[kind]().run_validation(config)
    if kind in RegisteredModel.CLOUD_PROVIDERS:
        _check_model_name(kind, config["model_name"])
        _check_base_url(kind, config)
        _check_generation_params(kind, config)
    elif kind == RegisteredModel.Provider.EMBEDDING and "model_name" in config:
        _check_model_name(RegisteredModel.Provider.LITELLM, config["model_name"])
    return config


def shares_file(model: RegisteredModel) -> str | None:
    """The name of another model whose weights are the same file, or lie in the same folder."""
    path = _path_or_none(model)
    if path is None:
        return None
    for other in RegisteredModel.objects.exclude(pk=model.pk):
        theirs = _path_or_none(other)
        if theirs and theirs.is_relative_to(path):
            return other.name
    return None


def _path_or_none(model: RegisteredModel) -> Path | None:
    try:
        path = models_dir.resolve(model.config["model_path"])
    except (KeyError, ValueError):
        return None
    return path if path.exists() else None


def delete_file(model: RegisteredModel) -> None:
    """Remove the file or the folder of a model, if it is there and in MODELS_DIR."""
    path = _path_or_none(model)
    if path and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path:
        path.unlink(missing_ok=True)


def file_facts(provider: str, config: dict[str, Any]) -> dict[str, Any]:
    """Fields of a model's row that its file tells, which has just arrived.

    `config` is that of the row. Raises ValidationError naming a field of it.
    """
    if provider == RegisteredModel.Provider.EMBEDDING:
        return _embedding_facts(config)
    return _local_facts(config)


def _local_fields(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": config,
        "max_output_tokens": config.get("max_output_tokens"),
        **_local_facts(config),
    }


def _local_facts(config: dict[str, Any]) -> dict[str, Any]:
    # The header's parser is for this moment only; the web process does without it otherwise.
    from inference.engine.gguf_header import read_header

    try:
        path = models_dir.resolve_file(config["model_path"])
        header = read_header(path)
    except (ValueError, InvalidGGUFError) as error:
        raise ValidationError({"model_path": [str(error)]}) from error
    trained = header.context_length or settings.N_CTX
    return {
        "context_window": config.get("context_window") or min(trained, settings.N_CTX),
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
    return {"config": config, "max_output_tokens": config.get("max_output_tokens")}


def _cloud_fields(provider: RegisteredModel.Provider, config: dict[str, Any]) -> dict[str, Any]:
    """The key is taken out of the config, which everyone may read."""
    return _with_key(config, provider) | {
        "context_window": config.get("context_window"),
        "max_output_tokens": config.get("max_output_tokens"),
    }


def _with_key(config: dict[str, Any], provider: str) -> dict[str, Any]:
    """The key on its own, and the config without; `provider` may have a variable of its own."""
    api_key = config.pop("api_key", "")
    if not api_key and "api_key_env_var" not in config and provider in DEFAULT_ENV_VARS:
        config["api_key_env_var"] = DEFAULT_ENV_VARS[RegisteredModel.Provider(provider)]
    return {"config": config, "encrypted_api_key": encryption.encrypt(api_key) if api_key else ""}


def _embedding_fields(config: dict[str, Any]) -> dict[str, Any]:
    if model_name := config.get("model_name"):
        return _with_key(config, model_name.partition("/")[0])
    return {"config": config, **_embedding_facts(config)}


def _embedding_facts(config: dict[str, Any]) -> dict[str, Any]:
    place = "package" if "package" in config else "model_path"
    try:
        fields = embedding_weights.describe(embedding_weights.find(config))
    except ValueError as error:
        raise ValidationError({place: [str(error)]}) from error
    if max_seq_length := config.get("max_seq_length"):
        fields["context_window"] = max_seq_length
    return fields


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


_SERIALIZERS: dict[str, type[serializers.Serializer[Any]]] = {
    RegisteredModel.Provider.LOCAL: LocalConfigSerializer,
    RegisteredModel.Provider.ECHO: EchoConfigSerializer,
    RegisteredModel.Provider.EMBEDDING: EmbeddingConfigSerializer,
    **dict.fromkeys(RegisteredModel.CLOUD_PROVIDERS, CloudConfigSerializer),
}
_FIELDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    RegisteredModel.Provider.LOCAL: _local_fields,
    RegisteredModel.Provider.ECHO: _echo_fields,
    RegisteredModel.Provider.EMBEDDING: _embedding_fields,
    **{provider: partial(_cloud_fields, provider) for provider in RegisteredModel.CLOUD_PROVIDERS},
}
