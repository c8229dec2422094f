"""Registering models: checks of their configs and files, and their rows."""

import glob
import shutil
from pathlib import Path
from typing import Any

from django.db import IntegrityError, transaction
from rest_framework.exceptions import ValidationError

from inference import encryption
from inference.engine.errors import InvalidGGUFError
from inference.engine.gguf_header import GGUFHeader, read_header
from inference.loading import weights
from inference.loading.sizes import default_context_window
from inference.models import RegisteredModel
from inference.providers import hosts
from inference.providers.api_keys import DEFAULT_ENV_VARS
from inference.providers.cloud.endpoints.config import models_by_endpoint
from inference.providers.registry import provider_class
from inference.registry.configs import SERIALIZERS
from monitoring.api.errors import Conflict

Provider = RegisteredModel.Provider

_LOOK_UP_SECONDS = 0.5


class ModelExistsError(Conflict):
    """The name is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is a model {name} already: delete it first, or take another name.")


def register(name: str, provider: str, config: dict[str, Any]) -> RegisteredModel:
    """Check the config for its provider and save the model.

    Raises ValidationError naming the field of `config`, and ModelExistsError.
    """
    try:
        config = check_config(provider, config)
        fields: dict[str, Any] = {}
        if provider in RegisteredModel.CLOUD_PROVIDERS or "model_name" in config:
            # The API shows the config, so the keys have columns of their own.
            if api_key := config.pop("api_key", ""):
                fields["encrypted_api_key"] = encryption.encrypt(api_key)
            endpoints = config.get("endpoints", [])
            if keys := {each["name"]: each.pop("api_key", "") for each in endpoints}:
                fields["encrypted_endpoint_keys"] = {
                    name: encryption.encrypt(key) for name, key in keys.items() if key
                }
            key_of = provider
            if provider == Provider.EMBEDDING:
                key_of = config["model_name"].partition("/")[0]
            if not api_key and key_of in DEFAULT_ENV_VARS:
                config.setdefault("api_key_env_var", DEFAULT_ENV_VARS[Provider(key_of)])
            _check_hosts(RegisteredModel(name=name, provider=provider, config=config, **fields))
            if config.get("is_reranker"):
                fields["extra"] = {"format": weights.CROSS_ENCODER}
        elif provider != Provider.ECHO:
            fields = file_facts(provider, config)
    except ValidationError as error:
        raise ValidationError({"config": error.detail}) from error
    return create(name, provider, config, **fields)


def create(name: str, provider: str, config: dict[str, Any], **fields: Any) -> RegisteredModel:
    """Save a model with a checked config; raises ModelExistsError."""
    limits = {key: config.get(key) for key in ("context_window", "max_output_tokens")}
    try:
        with transaction.atomic():
            return RegisteredModel.objects.create(
                name=name, provider=provider, config=config, **(limits | fields)
            )
    except IntegrityError:
        raise ModelExistsError(name) from None


def check_config(provider: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config as it is kept, checked without a look at the files that it names.

    Raises ValidationError naming the field.
    """
    kind = Provider(provider)
    config = SERIALIZERS[kind]().run_validation(config)
    if kind == Provider.EMBEDDING and "model_name" in config:
        _check_model_name(Provider.LITELLM, config["model_name"])
    if kind not in RegisteredModel.CLOUD_PROVIDERS:
        return config
    _check_model_name(kind, config["model_name"])
    if kind != Provider.OPENAI_COMPATIBLE:
        for name in {"endpoints", "batch_gate"} & config.keys():
            message = "Only openai_compatible models have it: leave it out."
            raise ValidationError({name: [message]})
    elif ("base_url" in config) == ("endpoints" in config):
        message = "Say where the server is, such as http://127.0.0.1:8080/v1, or name endpoints."
        raise ValidationError({"base_url": [message]})
    # Defaults are checked as a task's own fields are, unless they are to be dropped.
    params = config.get("generation_params", {})
    given = {name for name, value in params.items() if value is not None}
    unsupported = sorted(given & provider_class(kind).unsupported_params)
    if unsupported and not config.get("drop_params"):
        message = f"{kind} has no such parameter: leave it out, or set drop_params."
        raise ValidationError({"generation_params": {name: [message] for name in unsupported}})
    return config


def _check_hosts(model: RegisteredModel) -> None:
    """Whether the model may be asked where it is, with the keys that it would be asked with."""
    for there in models_by_endpoint(model).values():
        config = there.config
        why = hosts.refusal(there.provider, config)
        if why := why or hosts.refusal_by_name(config, _LOOK_UP_SECONDS):
            field = "base_url" if "base_url" in config else "api_key_env_var"
            raise ValidationError({"endpoints" if "endpoints" in model.config else field: [why]})


def _check_model_name(provider: Provider, model_name: str) -> None:
    """LiteLLM models name their provider before a slash; others must not."""
    if provider == Provider.LITELLM and "/" not in model_name:
        message = "Name the provider too, as in groq/llama-3.3-70b: docs.litellm.ai lists them."
        raise ValidationError({"model_name": [message]})
    if provider in DEFAULT_ENV_VARS and model_name.startswith(f"{provider}/"):
        message = f"Leave out {provider}/: the provider is named already."
        raise ValidationError({"model_name": [message]})


def file_facts(provider: str, config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model's row that come from its file or package.

    `config` is that of the row. Raises ValidationError naming a field of it.
    """
    field = "package" if "package" in config else "model_path"
    try:
        if provider == Provider.EMBEDDING:
            facts = weights.describe_embedding(weights.find_embedding(config))
            window = config.get("max_seq_length")
            return facts | ({"context_window": window} if window else {})
        header = read_header(weights.resolve_file(config["model_path"]))
    except (ValueError, InvalidGGUFError) as error:
        raise ValidationError({field: [str(error)]}) from error
    _check_draft_model(config, header)
    return {
        "context_window": config.get("context_window") or default_context_window(header),
        "size_bytes": header.size_bytes,
        "extra": {
            "architecture": header.architecture,
            "parameters": header.num_parameters,
            "quantization": header.quantization,
            "context_length": header.context_length,
            "chat_template": header.chat_template,
        },
    }


def _check_draft_model(config: dict[str, Any], header: GGUFHeader) -> None:
    """Whether the file of a `draft_model` is here, and has as many tokens as the model's own.

    Which tokens they are is compared when it is loaded. Raises ValidationError.
    """
    try:
        if (path := weights.resolve_draft(config)) is None:
            return
        num_tokens = read_header(path).vocab_size
    except (ValueError, InvalidGGUFError) as error:
        raise ValidationError({"draft_model": [str(error)]}) from error
    if num_tokens != header.vocab_size:
        message = (
            f"It has a vocabulary of {num_tokens} tokens and this model one of "
            f"{header.vocab_size}: name a smaller model of the same family."
        )
        raise ValidationError({"draft_model": [message]})


def shares_file(model: RegisteredModel) -> str | None:
    """The name of another model whose weights are the same file, or lie in the same folder."""
    path = _path_or_none(model)
    if path is None:
        return None
    for other in RegisteredModel.objects.exclude(pk=model.pk):
        other_path = _path_or_none(other)
        if other_path and other_path.is_relative_to(path):
            return other.name
    return None


def delete_file(model: RegisteredModel) -> None:
    """Remove the files or the folder of a model, if they are there and in MODELS_DIR."""
    path = _path_or_none(model)
    if path and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path:
        stem, is_first_part, ending = path.name.partition("-00001-of-")
        pattern = f"{glob.escape(stem)}-?????-of-{ending}"
        for file in path.parent.glob(pattern) if is_first_part else [path]:
            file.unlink(missing_ok=True)


def _path_or_none(model: RegisteredModel) -> Path | None:
    try:
        path = weights.resolve(model.config["model_path"])
    except (KeyError, ValueError):
        return None
    return path if path.exists() else None
