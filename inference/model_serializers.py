"""What the routes of models take and give: one serializer a shape."""

import re
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from inference.models import RegisteredModel
from inference.providers.registry import provider_class
from inference.quantizations import BITS
from inference.serializers import SamplingSerializer, StrictSerializer

MODEL_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")
RESERVED_MODEL_NAMES = {
    "check-compatibility",
    "load",
    "presets",
    "register",
    "register-from-preset",
    "unload",
}


class RegisteredModelSerializer(serializers.ModelSerializer[RegisteredModel]):
    supports_streaming = serializers.SerializerMethodField()
    supports_structured_output = serializers.SerializerMethodField()
    loaded = serializers.BooleanField()
    requested = serializers.SerializerMethodField()

    class Meta:
        model = RegisteredModel
        fields = (
            "name",
            "provider",
            "context_window",
            "max_output_tokens",
            "supports_streaming",
            "supports_structured_output",
            "status",
            "status_message",
            "loaded",
            "requested",
            "last_used_at",
            "unload_at",
            "size_bytes",
            "config",
            "extra",
        )
        read_only_fields = fields

    def get_supports_streaming(self, model: RegisteredModel) -> bool:
        return provider_class(model.provider).supports_streaming

    def get_supports_structured_output(self, model: RegisteredModel) -> bool:
        return provider_class(model.provider).supports_structured_output

    def get_requested(self, model: RegisteredModel) -> str | None:
        """`load` or `unload` until a worker has done it."""
        return model.requested or None


class ModelNameSerializer(StrictSerializer):
    """Which model a request is for."""

    model = serializers.CharField(max_length=100)


class CompatibilityRequestSerializer(StrictSerializer):
    """A model or a preset, and how it would be loaded; by default as it is registered."""

    model = serializers.CharField(required=False, max_length=100)
    preset_name = serializers.CharField(required=False, max_length=100)
    quantization = serializers.ChoiceField(choices=list(BITS), required=False, allow_null=True)
    context_window = serializers.IntegerField(
        required=False, allow_null=True, min_value=64, max_value=10_000_000
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("model" in attrs) == ("preset_name" in attrs):
            raise serializers.ValidationError({"model": ["Give either model or preset_name."]})
        return attrs


@extend_schema_field(float)
class MegabytesField(serializers.Field[int, int, float, Any]):
    """Shows a number of bytes as megabytes of 1024 * 1024."""

    def to_representation(self, value: int) -> float:
        return round(value / 1024 / 1024, 1)


class MemoryBreakdownSerializer(serializers.Serializer[Any]):
    """Everything that is needed, on the GPU and in RAM."""

    weights_mb = MegabytesField(source="weights_bytes")
    kv_cache_mb = MegabytesField(source="kv_cache_bytes")
    compute_mb = MegabytesField(source="compute_bytes")


class CompatibilitySerializer(serializers.Serializer[Any]):
    compatible = serializers.BooleanField(source="is_compatible")
    required_vram_mb = MegabytesField(
        source="required_bytes", help_text="On a GPU; without one, in RAM."
    )
    available_vram_mb = MegabytesField(source="available_bytes")
    recommended_quantization = serializers.CharField(
        allow_null=True, help_text="The best that fits."
    )
    warning = serializers.CharField(allow_null=True)
    breakdown = MemoryBreakdownSerializer(source="estimate")


class ModelRegistrationSerializer(StrictSerializer):
    name = serializers.RegexField(
        MODEL_NAME,
        error_messages={"invalid": "Use 1 to 100 letters, digits and . _ : -, a letter first."},
    )
    provider = serializers.ChoiceField(choices=RegisteredModel.Provider.choices)
    config = serializers.DictField(default=dict)

    def validate_name(self, name: str) -> str:
        if name in RESERVED_MODEL_NAMES:
            raise serializers.ValidationError(f"{name} is a route: choose another name.")
        return name


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


class EchoConfigSerializer(StrictSerializer):
    """config of an `echo` model."""

    delay_ms = serializers.FloatField(required=False, min_value=0, max_value=60_000)
    max_output_tokens = serializers.IntegerField(required=False, min_value=1, max_value=128_000)
    generation_params = SamplingSerializer(required=False)
