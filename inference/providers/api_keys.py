"""Which key a cloud model is asked with: one of its registration, or one of the environment."""

import os
from enum import StrEnum

from inference import encryption
from inference.encryption import DecryptionError
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel

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

    Raises InferenceError, not retryable, for a key that is not there or cannot be used.
    """
    match key_source(model):
        case KeySource.REGISTRATION:
            return _decrypted(model)
        case KeySource.ENVIRONMENT:
            return _from_environment(model.name, model.config["api_key_env_var"])
    return None


def is_usable(key: str) -> bool:
    """Whether it can be sent in a header: visible ASCII characters alone."""
    return bool(key) and key.isascii() and key.isprintable() and " " not in key


def _decrypted(model: RegisteredModel) -> str:
    try:
        return encryption.decrypt(model.encrypted_api_key)
    except DecryptionError as error:
        raise _failure(f"The stored key of model {model.name} cannot be read. {error}") from error


def _from_environment(name: str, variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise _failure(
            f"No key for model {name}: set {variable} in the worker's environment, or register "
            "the model with api_key."
        )
    if not is_usable(key):
        raise _failure(
            f"The key for model {name} cannot be sent: {variable} has white space or characters "
            "that are not ASCII."
        )
    return key


def _failure(message: str) -> InferenceError:
    return InferenceError(message, ErrorCode.AUTHENTICATION_FAILED)
