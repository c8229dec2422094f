"""What the routes of presets take and give: one serializer a shape."""

from typing import Any

from rest_framework import serializers

from inference.registry.configs import ModelNameField, check_api_key
from monitoring.api.strict_serializer import StrictSerializer
from presets.models import Preset
from presets.quantizations import BITS


class PresetSerializer(serializers.ModelSerializer[Preset]):
    """A preset; the context has `registered`, the names of the models that there are."""

    registered = serializers.SerializerMethodField()
    downloaded = serializers.SerializerMethodField()
    unpinned = serializers.BooleanField(
        help_text="Whether the hub may send another file one day: no commit is named, nor a hash."
    )

    class Meta:
        model = Preset
        fields = (
            *("name", "provider", "description", "license", "source", "huggingface_repo"),
            *("revision", "unpinned", "package", "filename", "files", "sha256", "size_b"),
            *(
                "vram_requirements",
                "dimensions",
                "api_key_env_var",
                "provider_config",
                "registered",
                "downloaded",
            ),
        )
        read_only_fields = fields

    def get_registered(self, preset: Preset) -> bool:
        """Whether there is a model of that name."""
        return preset.name in self.context["registered"]

    def get_downloaded(self, preset: Preset) -> bool | None:
        """Whether its weights are here, in one quantization at least; null if it runs elsewhere."""
        return preset.is_here() if preset.source else None


class PresetListSerializer(serializers.Serializer[Any]):
    local_models = PresetSerializer(many=True)
    cloud_models = PresetSerializer(many=True)
    embedding_models = PresetSerializer(many=True)
    total_local = serializers.IntegerField()
    total_cloud = serializers.IntegerField()
    total_embedding = serializers.IntegerField()


class PresetRegistrationSerializer(StrictSerializer):
    """A preset, and what differs from it."""

    preset_name = serializers.CharField(max_length=100)
    name = ModelNameField(required=False, help_text="Of the model; by default the preset's.")
    auto_download = serializers.BooleanField(
        default=True, help_text="False: POST /models/load brings the file later."
    )
    quantization = serializers.ChoiceField(choices=list(BITS), required=False, allow_null=True)
    api_key = serializers.CharField(
        required=False,
        write_only=True,
        max_length=4096,
        validators=[check_api_key],
        help_text="Of a cloud model: kept encrypted, instead of the preset's api_key_env_var.",
    )
