"""The `config` of a registration: one serializer for each kind of provider."""

import re
from typing import Any
from urllib.parse import urlsplit

from rest_framework import serializers

from inference.providers.api_keys import is_usable
from inference.serializers import SamplingSerializer
from monitoring.api.strict_serializer import StrictSerializer
from presets.entries import API_KEY_ENV_VAR

CLOUD_MODEL_NAME = re.compile(r"^[!-.0-~]+(/[!-.0-~]+)*$")
_URL = re.compile(r"https?://[!-~]+")


def check_api_key(key: str) -> None:
    """The message must not say what was given."""
    if not is_usable(key):
        raise serializers.ValidationError("A key has visible ASCII characters only, and no space.")


def check_base_url(url: str) -> None:
    """Neither here is it said what was given: a password may be in there."""
    try:
        parts = urlsplit(url if _URL.fullmatch(url) else "")
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or "\\" in url:
        raise serializers.ValidationError("Give an address such as https://api.example.com/v1.")
    if "@" in parts.netloc:
        message = "Leave user and password out of the address: a key goes into api_key."
        raise serializers.ValidationError(message)
    if "?" in url or "#" in url:
        raise serializers.ValidationError("Leave out what begins with ? or #.")


class LocalConfigSerializer(StrictSerializer):
    """config of a `local` model."""

    model_path = serializers.CharField(max_length=4096)
    context_window = serializers.IntegerField(required=False, min_value=64, max_value=10_000_000)
    gpu_layers = serializers.IntegerField(required=False, min_value=-1, max_value=10_000)
    num_threads = serializers.IntegerField(required=False, min_value=1, max_value=1024)
    num_batch_tokens = serializers.IntegerField(required=False, min_value=1, max_value=65_536)
    max_num_seqs = serializers.IntegerField(required=False, min_value=1, max_value=256)
    num_cache_cells = serializers.IntegerField(required=False, min_value=64, max_value=100_000_000)
    keep_alive_seconds = serializers.FloatField(
        required=False, min_value=-1, max_value=31_536_000, help_text="-1: for ever."
    )
    pinned = serializers.BooleanField(
        required=False, help_text="Neither idle time nor another model drives it out of memory."
    )
    max_output_tokens = serializers.IntegerField(required=False, min_value=1, max_value=128_000)
    generation_params = SamplingSerializer(required=False)


class ConnectionConfigSerializer(StrictSerializer):
    """How a provider is reached: the part of a config that all models of others share."""

    api_key = serializers.CharField(
        required=False,
        write_only=True,
        max_length=4096,
        validators=[check_api_key],
        help_text="Kept encrypted, and never shown again.",
    )
    api_key_env_var = serializers.RegexField(
        API_KEY_ENV_VAR,
        required=False,
        max_length=100,
        help_text="The variable of the api worker's environment that has the key.",
        error_messages={
            "invalid": "Name a variable that ends in _API_KEY, such as OPENAI_API_KEY: no other "
            "part of the environment is sent anywhere."
        },
    )
    base_url = serializers.CharField(
        required=False,
        max_length=2048,
        validators=[check_base_url],
        help_text="Of the API, such as http://127.0.0.1:8080/v1; openai_compatible needs one.",
    )
    timeout = serializers.FloatField(
        required=False, min_value=1, max_value=3600, help_text="Seconds of silence."
    )
    max_retries = serializers.IntegerField(required=False, min_value=0, max_value=10)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "api_key" in attrs and "api_key_env_var" in attrs:
            message = "Give api_key or api_key_env_var, not both."
            raise serializers.ValidationError({"api_key": [message]})
        return attrs


class CloudConfigSerializer(ConnectionConfigSerializer):
    """config of an `openai`, `anthropic`, `openai_compatible` or `litellm` model."""

    model_name = serializers.RegexField(
        CLOUD_MODEL_NAME,
        max_length=200,
        help_text="As the provider calls it; of `litellm` with the provider: `groq/llama-3.3`.",
        error_messages={"invalid": "Use visible ASCII characters, and / between names only."},
    )
    context_window = serializers.IntegerField(required=False, min_value=64, max_value=10_000_000)
    max_output_tokens = serializers.IntegerField(required=False, min_value=1, max_value=128_000)
    drop_params = serializers.BooleanField(
        required=False, help_text="Leave out what the provider does not take, without a word."
    )
    generation_params = SamplingSerializer(required=False)


class EchoConfigSerializer(StrictSerializer):
    """config of an `echo` model."""

    delay_ms = serializers.FloatField(required=False, min_value=0, max_value=60_000)
    max_output_tokens = serializers.IntegerField(required=False, min_value=1, max_value=128_000)
    generation_params = SamplingSerializer(required=False)
