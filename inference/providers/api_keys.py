"""Which key a cloud model is asked with: one of its registration, or one of the environment."""

import os
from enum import StrEnum

from inference import encryption
from inference.encryption import DecryptionError
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.providers import hosts

# Where the key comes from when the registration says nothing.
DEFAULT_ENV_VARS = {
    RegisteredModel.Provider.OPENAI: "OPENAI_API_KEY",
    RegisteredModel.Provider.ANTHROPIC: "ANTHROPIC_API_KEY",
}


class KeySource(StrEnum):
    """Where a model's key is kept."""

    REGISTRATION = "registration"
    ENVIRONMENT = "environment"


def key_source(model: RegisteredModel) -> KeySource | None:
    """None for a model that is asked without a key."""
    if model.encrypted_api_key:
        return KeySource.REGISTRATION
    return KeySource.ENVIRONMENT if model.config.get("api_key_env_var") else None


def api_key_of(model: RegisteredModel) -> str | None:
    """The key to ask the model with; None when it needs none.

    Raises InferenceError, not retryable, for a key that is not there or cannot be used, and for a
    model at a host where it must not be asked.
    """
    if why := hosts.refusal(model.provider, model.config):
        raise InferenceError(
            f"The model {model.name} is not asked. {why}", ErrorCode.PROVIDER_ERROR
        )
    match key_source(model):
        case KeySource.REGISTRATION:
            try:
                return encryption.decrypt(model.encrypted_api_key)
            except DecryptionError as error:
                message = f"The stored key of model {model.name} cannot be read. {error}"
                raise InferenceError(message, ErrorCode.AUTHENTICATION_FAILED) from error
        case KeySource.ENVIRONMENT:
            variable = model.config["api_key_env_var"]
            key = os.environ.get(variable, "").strip()
            if is_usable(key):
                return key
            message = (
                f"No key for model {model.name}: set {variable} in the worker's environment, or "
                "register the model with api_key."
            )
            if key:
                message = (
                    f"The key for model {model.name} cannot be sent: {variable} has white space or "
                    "characters that are not ASCII."
                )
            raise InferenceError(message, ErrorCode.AUTHENTICATION_FAILED)
    return None


def is_usable(key: str) -> bool:
    """Whether it can be sent in a header: visible ASCII characters alone."""
    return bool(key) and key.isascii() and key.isprintable() and " " not in key
