"""What the routes of models take and give: one serializer a shape."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from inference.models import RegisteredModel
from inference.providers import circuit_breaker
from inference.providers.api_keys import KeySource, key_source
from inference.providers.circuit_breaker import CircuitState
from inference.providers.cloud.endpoints.config import models_by_endpoint
from inference.providers.cloud.endpoints.endpoint import EndpointState, Health
from inference.providers.registry import provider_class
from inference.registry.configs import (
    CloudConfigSerializer,
    EchoConfigSerializer,
    EmbeddingConfigSerializer,
    LocalConfigSerializer,
    ModelNameField,
)
from monitoring.api.strict_serializer import StrictSerializer
from presets.quantizations import BITS


class CircuitSerializer(serializers.Serializer[Any]):
    """Whether a model that keeps failing is left alone."""

    state = serializers.ChoiceField(choices=[state.value for state in circuit_breaker.State])
    failures = serializers.IntegerField(help_text="In a row.")
    retry_at = serializers.DateTimeField(allow_null=True, help_text="While it is open.")


class EndpointSerializer(serializers.Serializer[Any]):
    """A server that answers for a cloud model, and how it is, as the api workers see it.

    All but its name and the source of its key are null while nobody has asked it of late, and for
    keys without the scope `monitor`.
    """

    name = serializers.CharField()
    api_key_source = serializers.ChoiceField(
        choices=[source.value for source in KeySource], allow_null=True
    )
    health = serializers.ChoiceField(choices=[each.value for each in Health], allow_null=True)
    in_flight = serializers.IntegerField(allow_null=True, help_text="Calls.")
    limit = serializers.IntegerField(
        allow_null=True, help_text="Calls at a time, at present; null: none."
    )
    latency_ms = serializers.FloatField(allow_null=True, help_text="Of a usual answer.")
    waiting = serializers.IntegerField(
        allow_null=True, help_text="Requests, as the engine says; with a `batch_gate`."
    )
    usage = serializers.FloatField(
        allow_null=True, help_text="Part of its KV cache, as the engine says; with a `batch_gate`."
    )


class DownloadSerializer(serializers.Serializer[Any]):
    """How much of a model's file has arrived."""

    downloaded_bytes = serializers.IntegerField()
    total_bytes = serializers.IntegerField(
        allow_null=True, help_text="Null until the hub has told it."
    )


class LoadedWithSerializer(serializers.Serializer[Any]):
    """The settings by which a model runs, as they were when it was last used."""

    context_window = serializers.IntegerField()
    max_num_seqs = serializers.IntegerField(help_text="Fewer than asked for where memory is short.")
    num_cache_cells = serializers.IntegerField(
        allow_null=True, help_text="Null: a window for each sequence."
    )
    num_batch_tokens = serializers.IntegerField()
    max_draft_tokens = serializers.IntegerField()
    gpu_layers = serializers.IntegerField()
    gpu_split = serializers.DictField(allow_null=True)
    num_threads = serializers.IntegerField(help_text="The fastest number, as steps are measured.")
    step_prompt_tokens = serializers.IntegerField(
        help_text="Tokens of prompts that a step takes beside answers, as steps are measured."
    )


class RegisteredModelSerializer(serializers.ModelSerializer[RegisteredModel]):
    supports_streaming = serializers.SerializerMethodField()
    supports_structured_output = serializers.SerializerMethodField()
    loaded = serializers.BooleanField()
    requested = serializers.SerializerMethodField()
    loaded_with = serializers.SerializerMethodField()
    download = serializers.SerializerMethodField()
    api_key_source = serializers.SerializerMethodField()
    circuit = serializers.SerializerMethodField()
    endpoints = serializers.SerializerMethodField()

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
            "loaded_with",
            "size_bytes",
            "download",
            "api_key_source",
            "circuit",
            "endpoints",
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

    @extend_schema_field(LoadedWithSerializer(allow_null=True))
    def get_loaded_with(self, model: RegisteredModel) -> dict[str, Any] | None:
        """Of a local model that is loaded."""
        return model.loaded_with if model.loaded else None

    @extend_schema_field(DownloadSerializer(allow_null=True))
    def get_download(self, model: RegisteredModel) -> dict[str, Any] | None:
        """Of a model from the hub that is being downloaded, or has failed."""
        if model.status not in (RegisteredModel.Status.DOWNLOADING, RegisteredModel.Status.ERROR):
            return None
        download = getattr(model, "download", None)
        return None if download is None else dict(DownloadSerializer(download).data)

    @extend_schema_field(
        serializers.ChoiceField(choices=[source.value for source in KeySource], allow_null=True)
    )
    def get_api_key_source(self, model: RegisteredModel) -> str | None:
        """Null: it is asked without a key."""
        return key_source(model)

    @extend_schema_field(CircuitSerializer(allow_null=True))
    def get_circuit(self, model: RegisteredModel) -> dict[str, Any] | None:
        """Of cloud models. A list hands the circuits over, to read them once."""
        circuits: dict[str, CircuitState] | None = self.context.get("circuits")
        found = (circuit_breaker.states([model]) if circuits is None else circuits).get(model.name)
        return None if found is None else dict(CircuitSerializer(found).data)

    @extend_schema_field(EndpointSerializer(many=True, allow_null=True))
    def get_endpoints(self, model: RegisteredModel) -> list[dict[str, Any]] | None:
        """Of cloud models. Whoever may know how they are hands the states over."""
        if model.provider not in RegisteredModel.CLOUD_PROVIDERS:
            return None
        states: dict[str, EndpointState] = self.context.get("endpoints", {}).get(model.pk, {})
        return [
            {
                "name": name,
                "api_key_source": key_source(there),
                "health": state.health if state else None,
                "in_flight": state.in_flight if state else None,
                "limit": state.limit if state else None,
                "latency_ms": round(state.latency * 1000, 1) if state and state.latency else None,
                "waiting": state.waiting if state else None,
                "usage": state.usage if state else None,
            }
            for name, there in models_by_endpoint(model).items()
            for state in [states.get(name)]
        ]


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


class ConfigField(serializers.DictField):
    """Checked as the provider's when it is known which one that is."""

    shapes = (
        LocalConfigSerializer,
        CloudConfigSerializer,
        EmbeddingConfigSerializer,
        EchoConfigSerializer,
    )


class ModelRegistrationSerializer(StrictSerializer):
    """A new model; `config` is what its provider takes."""

    name = ModelNameField()
    provider = serializers.ChoiceField(choices=RegisteredModel.Provider.choices)
    config = ConfigField(default=dict)
