"""The fields of an entry of the catalogue: one serializer a kind."""

import re
from typing import Any

from rest_framework import serializers

from monitoring.api.strict_serializer import StrictSerializer
from presets.models import Preset
from presets.quantizations import BITS

# A model takes its preset's name; both are parts of URLs.
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")
# No other variable of the environment may be sent to an address that a registration names.
API_KEY_ENV_VAR = re.compile(r"^[A-Z][A-Z0-9_]*_API_KEY$")
_FILENAME = re.compile(r"^[^/\\\0]+\.gguf$")
_REPOSITORY = re.compile(r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")
# These are fields of the preset itself.
_NOT_IN_CONFIG = ("model_path", "package", "api_key_env_var")
_CLOUD_PROVIDERS = ("openai", "anthropic", "openai_compatible", "litellm")


class _EntrySerializer(StrictSerializer):
    """What all kinds have in common. `provider_config` is checked as a registration's config."""

    def to_internal_value(self, data: Any) -> Any:
        """Refuse numbers in text fields, since YAML reads 1.10 as 1.1."""
        for name, value in data.items() if isinstance(data, dict) else ():
            if isinstance(value, int | float) and isinstance(
                self.fields.get(name), serializers.CharField
            ):
                raise serializers.ValidationError({name: [f"{value} is no text: put it in quotes"]})
        return super().to_internal_value(data)

    name = serializers.RegexField(
        NAME, error_messages={"invalid": "use letters, digits and . _ : -, 100 at most"}
    )
    description = serializers.CharField(required=False, max_length=500)
    license = serializers.CharField(required=False, max_length=200)
    provider_config = serializers.DictField(default=dict)

    def validate_provider_config(self, config: dict[str, Any]) -> dict[str, Any]:
        if "api_key" in config:
            message = "everyone can read a preset: name the key's variable in api_key_env_var"
            raise serializers.ValidationError({"api_key": [message]})
        if misplaced := [name for name in _NOT_IN_CONFIG if name in config]:
            message = "it does not belong here, but into the preset's own fields"
            raise serializers.ValidationError({name: [message] for name in misplaced})
        return config


class _FilenameField(serializers.RegexField):
    default_error_messages = {"invalid": "name a .gguf file, without folders"}

    def __init__(self, **options: Any) -> None:
        super().__init__(_FILENAME, **options)


class _FileSerializer(_EntrySerializer):
    """Weights that are to be had as a file, from the hub or in a Python package."""

    source = serializers.ChoiceField(  # type: ignore[assignment]  # of Field, which has another
        choices=[Preset.Source.HUB, Preset.Source.PACKAGE]
    )
    huggingface_repo = serializers.RegexField(
        _REPOSITORY, required=False, error_messages={"invalid": "write owner/name"}
    )
    revision = serializers.CharField(required=False, max_length=100)
    package = serializers.RegexField(r"^[A-Za-z_]\w*$", required=False)
    filename = _FilenameField(required=False)
    files = serializers.DictField(required=False, child=_FilenameField())
    sha256 = serializers.DictField(
        required=False,
        child=serializers.RegexField(
            "^[0-9a-f]{64}$", error_messages={"invalid": "write 64 hexadecimal digits"}
        ),
    )
    size_b = serializers.FloatField(required=False, min_value=0.001, max_value=10_000)
    vram_requirements = serializers.DictField(
        required=False, child=serializers.IntegerField(min_value=1)
    )

    def validate_files(self, files: dict[str, str]) -> dict[str, str]:
        return _by_quantization(files)

    def validate_vram_requirements(self, requirements: dict[str, int]) -> dict[str, int]:
        return _by_quantization(requirements)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        place = "huggingface_repo" if attrs["source"] == Preset.Source.HUB else "package"
        if place not in attrs:
            raise serializers.ValidationError({place: [f"a source {attrs['source']} needs it"]})
        needs_file = attrs["source"] == Preset.Source.HUB
        if needs_file and attrs.get("filename") not in attrs.get("files", {}).values():
            message = "name one of the files as the one that is taken by default"
            raise serializers.ValidationError({"filename": [message]})
        if attrs.get("sha256", {}).keys() - attrs.get("files", {}).keys():
            raise serializers.ValidationError({"sha256": ["name quantizations of `files` only"]})
        return attrs


class LocalEntrySerializer(_FileSerializer):
    provider = serializers.ChoiceField(choices=["local"])
    in_parts = serializers.BooleanField(required=False)
    filename = _FilenameField()
    size_b = serializers.FloatField(min_value=0.001, max_value=10_000)


class CloudEntrySerializer(_EntrySerializer):
    provider = serializers.ChoiceField(choices=_CLOUD_PROVIDERS)
    api_key_env_var = serializers.RegexField(
        API_KEY_ENV_VAR,
        required=False,
        error_messages={"invalid": "name a variable that ends in _API_KEY"},
    )

    def validate_provider_config(self, config: dict[str, Any]) -> dict[str, Any]:
        return _with_model_name(super().validate_provider_config(config))


class EmbeddingEntrySerializer(_FileSerializer):
    """A file, or a model of others: then without `source`."""

    provider = serializers.ChoiceField(choices=["embedding"])
    source = serializers.ChoiceField(choices=[Preset.Source.HUB, Preset.Source.PACKAGE], default="")
    dimensions = serializers.IntegerField(min_value=1, max_value=100_000)
    api_key_env_var = CloudEntrySerializer().fields["api_key_env_var"]

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["source"]:
            return super().validate(attrs)
        try:
            _with_model_name(attrs["provider_config"])
        except serializers.ValidationError as error:
            raise serializers.ValidationError({"provider_config": error.detail}) from error
        return attrs


SERIALIZERS: dict[str, type[_EntrySerializer]] = {
    Preset.Kind.LOCAL: LocalEntrySerializer,
    Preset.Kind.CLOUD: CloudEntrySerializer,
    Preset.Kind.EMBEDDING: EmbeddingEntrySerializer,
}


def _by_quantization(values: dict[str, Any]) -> dict[str, Any]:
    if unknown := [name for name in values if name not in BITS]:
        message = f"{unknown[0]} is no quantization: take one of {', '.join(BITS)}"
        raise serializers.ValidationError(message)
    return values


def _with_model_name(config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config.get("model_name"), str):
        message = "say what the provider calls the model"
        raise serializers.ValidationError({"model_name": [message]})
    return config
