"""API keys as JSON."""

from typing import Any

from django.utils import timezone
from rest_framework import serializers

from monitoring.api.principal import Limits, Scope
from monitoring.api.strict_serializer import StrictSerializer
from sopllm.access.models import ApiKey

LIMIT_FIELDS = tuple(Limits.__dataclass_fields__)


class NewApiKeySerializer(StrictSerializer, serializers.ModelSerializer[ApiKey]):
    """What a new key is to be; a limit that is left out is the service's default, if any."""

    scopes = serializers.MultipleChoiceField(
        choices=[scope.value for scope in Scope], default={Scope.TASKS.value}, allow_empty=False
    )

    class Meta(StrictSerializer.Meta):
        model = ApiKey
        fields = ("owner", "name", "scopes", "expires_at", *LIMIT_FIELDS)

    def validate_expires_at(self, value: Any) -> Any:
        if value is not None and value <= timezone.now():
            raise serializers.ValidationError("It is over: give a time to come.")
        return value


class ApiKeySerializer(serializers.ModelSerializer[ApiKey]):
    """A key, without its secret part."""

    scopes = serializers.ListField(child=serializers.ChoiceField([each.value for each in Scope]))

    class Meta:
        model = ApiKey
        fields = (
            *("prefix", "owner", "name", "scopes", "created_at", "expires_at", "revoked_at"),
            *("last_used_at", *LIMIT_FIELDS),
        )


class MadeApiKeySerializer(ApiKeySerializer):
    """A new key; `key` is shown this once."""

    key = serializers.CharField()

    class Meta(ApiKeySerializer.Meta):
        fields = ("key", *ApiKeySerializer.Meta.fields)


class UseSerializer(serializers.Serializer[Any]):
    """What the owner's tasks and cloud models have used."""

    num_tasks = serializers.IntegerField()
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    cost_usd = serializers.FloatField(help_text="Of calls of cloud models whose price is known.")


class MeSerializer(serializers.Serializer[Any]):
    """Who asks."""

    name = serializers.CharField(help_text="The prefix of the key, or the name of the user.")
    owner = serializers.CharField()
    scopes = serializers.ListField(child=serializers.ChoiceField([each.value for each in Scope]))
    is_staff = serializers.BooleanField()
    limits = serializers.DictField(child=serializers.FloatField(allow_null=True))
    today = UseSerializer(help_text="Since midnight, UTC.")
    this_month = UseSerializer(help_text="Since the first of the month, UTC.")
    open_streams = serializers.IntegerField(
        allow_null=True, help_text="Those that max_open_streams counts; null without Redis."
    )


class TicketSerializer(serializers.Serializer[Any]):
    """Lets in once, as `?ticket=…`."""

    ticket = serializers.CharField()
    expires_in_seconds = serializers.IntegerField()
