"""The `config` of a registration of an embedding model."""

from typing import Any

from rest_framework import serializers

from inference.loading import embedding_weights
from inference.registry.configs import CLOUD_MODEL_NAME, ConnectionConfigSerializer

_OF_A_CONNECTION = {"api_key", "api_key_env_var", "base_url", "timeout", "max_retries"}
# What else may be said of a model, by where it is.
_FIELDS_BY_PLACE = {
    "model_path": {"max_seq_length", "pooling"},
    "package": {"max_seq_length"},
    "model_name": _OF_A_CONNECTION,
}
_OF_ALL = {"prompts", "dimensions"}


class EmbeddingConfigSerializer(ConnectionConfigSerializer):
    """config of an `embedding` model, which is in one of three places."""

    model_path = serializers.CharField(
        required=False,
        max_length=4096,
        help_text="In MODELS_DIR: a folder of sentence-transformers, or a GGUF file.",
    )
    package = serializers.RegexField(
        embedding_weights.PACKAGE_NAME,
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

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs = super().validate(attrs)
        places = attrs.keys() & _FIELDS_BY_PLACE.keys()
        if len(places) != 1:
            message = "Give one of model_path, package and model_name."
            raise serializers.ValidationError({"model_path": [message]})
        [place] = places
        fields = _FIELDS_BY_PLACE[place] | _OF_ALL | {place}
        if strangers := sorted(attrs.keys() - fields):
            message = f"A model with {place} has no such field: leave it out."
            raise serializers.ValidationError({name: [message] for name in strangers})
        _check_pooling(attrs)
        return attrs


def _check_pooling(attrs: dict[str, Any]) -> None:
    if "pooling" in attrs and not embedding_weights.is_gguf(attrs["model_path"]):
        message = "Models of sentence-transformers say that themselves: leave it out."
        raise serializers.ValidationError({"pooling": [message]})
