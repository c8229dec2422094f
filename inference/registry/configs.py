"""The fields of a registration: its name, and the `config` of each kind of provider."""

import re
from typing import Any
from urllib.parse import urlsplit

from rest_framework import serializers

from inference.engine.runner import SplitMode
from inference.loading import weights
from inference.models import RegisteredModel
from inference.providers.api_keys import is_usable
from inference.providers.cloud.endpoints.config import host_of
from monitoring.api.strict_serializer import StrictSerializer
from presets.entries import API_KEY_ENV_VAR, NAME

RESERVED_MODEL_NAMES = {
    "check-compatibility",
    "load",
    "presets",
    "register",
    "register-from-preset",
    "unload",
}
CLOUD_MODEL_NAME = re.compile(r"^[!-.0-~]+(/[!-.0-~]+)*$")
_URL = re.compile(r"https?://[!-~]+")
_CONNECTION_FIELDS = {
    *("api_key", "api_key_env_var", "base_url", "timeout", "max_retries", "input_cost_per_token"),
}
_MAX_ENDPOINTS = 64
_ENDPOINT_NAME = re.compile(r"[!-~]+")
NOT_DETERMINISTIC = (
    "With num_cache_cells sequences share one buffer, where each changes how the others are "
    "computed: leave out num_cache_cells, or deterministic."
)
# The fields that go with each place of an embedding model.
_FIELDS_BY_PLACE = {
    "model_path": {"max_seq_length", "pooling"},
    "package": {"max_seq_length"},
    "model_name": _CONNECTION_FIELDS | {"is_reranker"},
}
_COMMON_FIELDS = {"prompts", "dimensions"}


def check_api_key(key: str) -> None:
    """The message must not show the key."""
    if not is_usable(key):
        raise serializers.ValidationError("A key has visible ASCII characters only, and no space.")


def check_base_url(url: str) -> None:
    """The message must not show the address: a password may be in it."""
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


class SamplingSerializer(StrictSerializer):
    """How the next token is chosen; null means the model's own default."""

    temperature = serializers.FloatField(required=False, allow_null=True, min_value=0, max_value=2)
    top_p = serializers.FloatField(required=False, allow_null=True, min_value=0, max_value=1)
    top_k = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=1_000_000
    )
    min_p = serializers.FloatField(required=False, allow_null=True, min_value=0, max_value=1)
    frequency_penalty = serializers.FloatField(
        required=False, allow_null=True, min_value=-2, max_value=2
    )
    presence_penalty = serializers.FloatField(
        required=False, allow_null=True, min_value=-2, max_value=2
    )
    repeat_penalty = serializers.FloatField(
        required=False, allow_null=True, min_value=0.01, max_value=100
    )
    seed = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=2**32 - 2
    )
    max_tokens = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, max_value=128_000
    )
    stop_sequences = serializers.ListField(
        child=serializers.CharField(trim_whitespace=False, min_length=1, max_length=1000),
        required=False,
        allow_null=True,
        max_length=16,
    )
    deterministic = serializers.BooleanField(
        required=False,
        allow_null=True,
        help_text="The same tokens to the bit, whatever else the model does; local models only.",
    )


SAMPLING_FIELDS = tuple(SamplingSerializer().fields)


class ModelNameField(serializers.RegexField):
    """The name of a new model: it is a part of addresses."""

    default_error_messages = {
        "invalid": "Use 1 to 100 letters, digits and . _ : -, a letter first.",
        "reserved": "{name} is a route: choose another name.",
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(NAME, **options)

    def to_internal_value(self, data: Any) -> str:
        name = str(super().to_internal_value(data))
        if name in RESERVED_MODEL_NAMES:
            self.fail("reserved", name=name)
        return name


class LocalConfigSerializer(StrictSerializer):
    """config of a `local` model."""

    model_path = serializers.CharField(max_length=4096)
    context_window = serializers.IntegerField(required=False, min_value=64, max_value=10_000_000)
    gpu_layers = serializers.IntegerField(required=False, min_value=-1, max_value=10_000)
    split_mode = serializers.ChoiceField(
        choices=[mode.value for mode in SplitMode],
        required=False,
        help_text="How a model lies on a worker's GPUs; by default whole layers on each, `layer`.",
    )
    main_gpu = serializers.IntegerField(
        required=False, min_value=0, max_value=63, help_text="The place of one among them, from 0."
    )
    tensor_split = serializers.ListField(
        child=serializers.FloatField(min_value=0, max_value=1_000_000),
        required=False,
        min_length=1,
        max_length=16,
        help_text="The proportion of the model on each of them; by default as their free memory.",
    )
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
    shares_prefixes = serializers.BooleanField(
        required=False, help_text="Prompts start from what those of other owners have computed."
    )
    speculative = serializers.ChoiceField(
        choices=["lookup", "off"],
        required=False,
        help_text="Whether tokens are computed before they are chosen; by default `lookup`.",
    )
    draft_model = serializers.CharField(
        required=False,
        max_length=100,
        help_text="The name of a smaller local model of the same vocabulary, which drafts too.",
    )
    max_output_tokens = serializers.IntegerField(required=False, min_value=1, max_value=128_000)
    generation_params = SamplingSerializer(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "num_cache_cells" in attrs and attrs.get("generation_params", {}).get("deterministic"):
            raise serializers.ValidationError({"num_cache_cells": [NOT_DETERMINISTIC]})
        if "tensor_split" in attrs:
            if not any(attrs["tensor_split"]):
                message = "Give one GPU more than 0."
                raise serializers.ValidationError({"tensor_split": [message]})
            if attrs.get("split_mode") == SplitMode.NONE:
                message = "split_mode is none, so that one GPU has all: leave out one of them."
                raise serializers.ValidationError({"tensor_split": [message]})
        if "draft_model" in attrs and attrs.get("speculative") == "off":
            message = "speculative is off, so that nothing is drafted: leave out one of them."
            raise serializers.ValidationError({"draft_model": [message]})
        return attrs


class AddressSerializer(StrictSerializer):
    """Where a provider is, and the key that it is asked with."""

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

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "api_key" in attrs and "api_key_env_var" in attrs:
            message = "Give api_key or api_key_env_var, not both."
            raise serializers.ValidationError({"api_key": [message]})
        return attrs


class EndpointConfigSerializer(AddressSerializer):
    """One of several servers of an `openai_compatible` model."""

    name = serializers.RegexField(
        _ENDPOINT_NAME,
        required=False,
        max_length=255,
        help_text="What reports and figures call it; by default its host and port.",
        error_messages={"invalid": "Use visible ASCII characters."},
    )
    base_url = serializers.CharField(max_length=2048, validators=[check_base_url])
    weight = serializers.FloatField(
        required=False, min_value=0.01, max_value=100, help_text="By default 1."
    )
    max_concurrency = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=4096,
        help_text="Calls of an api worker at a time; how many there are follows from the answers.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs = super().validate(attrs)
        return attrs | {"name": attrs.get("name") or host_of(attrs["base_url"])}


class BatchGateSerializer(StrictSerializer):
    """Until when the engines of a model get tasks of a priority below 1, by their own /metrics."""

    max_waiting = serializers.IntegerField(
        required=False, min_value=0, max_value=10_000, help_text="Requests; by default 0."
    )
    max_usage = serializers.FloatField(
        required=False,
        min_value=0,
        max_value=1,
        help_text="Part of the KV cache, or of what the engine works on; by default 0.8.",
    )


class ConnectionConfigSerializer(AddressSerializer):
    """How to reach a provider: the fields that all remote models share."""

    timeout = serializers.FloatField(
        required=False, min_value=1, max_value=3600, help_text="Seconds of silence."
    )
    max_retries = serializers.IntegerField(required=False, min_value=0, max_value=10)
    input_cost_per_token = serializers.FloatField(
        required=False, min_value=0, max_value=1, help_text="Dollars; by default LiteLLM's price."
    )


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
    max_concurrency = serializers.IntegerField(
        required=False, min_value=1, max_value=4096, help_text="Calls of an api worker at a time."
    )
    endpoints = serializers.ListField(
        child=EndpointConfigSerializer(),
        required=False,
        min_length=1,
        max_length=_MAX_ENDPOINTS,
        help_text="Of openai_compatible, instead of base_url: several servers that have the model.",
    )
    batch_gate = BatchGateSerializer(
        required=False, help_text="Of openai_compatible; by default there is none."
    )
    drop_params = serializers.BooleanField(
        required=False, help_text="Leave out what the provider does not take, without a word."
    )
    output_cost_per_token = serializers.FloatField(
        required=False, min_value=0, max_value=1, help_text="Dollars; by default LiteLLM's price."
    )
    generation_params = SamplingSerializer(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs = super().validate(attrs)
        missing = {"input_cost_per_token", "output_cost_per_token"} - attrs.keys()
        if len(missing) == 1:
            raise serializers.ValidationError({missing.pop(): ["Give both prices, or none."]})
        names = [endpoint["name"] for endpoint in attrs.get("endpoints", ())]
        if len(set(names)) < len(names):
            message = "Two of them are at the same host: give each a name of its own."
            raise serializers.ValidationError({"endpoints": [message]})
        return attrs


class EmbeddingConfigSerializer(ConnectionConfigSerializer):
    """config of an `embedding` model, which is in one of three places."""

    model_path = serializers.CharField(
        required=False,
        max_length=4096,
        help_text="In MODELS_DIR: a folder of sentence-transformers, or a GGUF file.",
    )
    package = serializers.RegexField(
        weights.PACKAGE_NAME,
        required=False,
        max_length=100,
        help_text="An installed Python package that has such a folder in it.",
    )
    model_name = serializers.RegexField(
        CLOUD_MODEL_NAME,
        required=False,
        max_length=200,
        help_text="At a provider, as LiteLLM calls it: `openai/text-embedding-3-small`.",
    )
    is_reranker = serializers.BooleanField(
        required=False, help_text="At a provider: it ranks texts, and gives no vectors."
    )
    prompts = serializers.DictField(
        child=serializers.CharField(allow_blank=True, trim_whitespace=False, max_length=10_000),
        required=False,
        help_text="What to put before each text, by the name that a request gives.",
    )
    dimensions = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=65_536,
        help_text="Shorter vectors, of a model that is made for it.",
    )
    max_seq_length = serializers.IntegerField(
        required=False, min_value=1, max_value=1_000_000, help_text="Tokens read of a text."
    )
    pooling = serializers.ChoiceField(
        choices=["mean", "cls", "last"], required=False, help_text="Of a GGUF file."
    )

    def validate_prompts(self, prompts: dict[str, str]) -> dict[str, str]:
        """Names as requests can give them."""
        name_field = serializers.CharField(max_length=100)
        return {name_field.run_validation(name): text for name, text in prompts.items()}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs = super().validate(attrs)
        places = attrs.keys() & _FIELDS_BY_PLACE.keys()
        if len(places) != 1:
            message = "Give one of model_path, package and model_name."
            raise serializers.ValidationError({"model_path": [message]})
        [place] = places
        fields = _FIELDS_BY_PLACE[place] | _COMMON_FIELDS | {place}
        if unknown := sorted(attrs.keys() - fields):
            message = f"A model with {place} has no such field: leave it out."
            raise serializers.ValidationError({name: [message] for name in unknown})
        if "pooling" in attrs and not weights.is_gguf(attrs["model_path"]):
            message = "Models of sentence-transformers say that themselves: leave it out."
            raise serializers.ValidationError({"pooling": [message]})
        return attrs


class EchoConfigSerializer(StrictSerializer):
    """config of an `echo` model."""

    delay_ms = serializers.FloatField(required=False, min_value=0, max_value=60_000)
    max_output_tokens = serializers.IntegerField(required=False, min_value=1, max_value=128_000)
    generation_params = SamplingSerializer(required=False)


SERIALIZERS: dict[str, type[serializers.Serializer[Any]]] = {
    RegisteredModel.Provider.LOCAL: LocalConfigSerializer,
    RegisteredModel.Provider.ECHO: EchoConfigSerializer,
    RegisteredModel.Provider.EMBEDDING: EmbeddingConfigSerializer,
    **dict.fromkeys(RegisteredModel.CLOUD_PROVIDERS, CloudConfigSerializer),
}
