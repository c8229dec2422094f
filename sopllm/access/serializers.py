"""API keys as JSON."""

from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from django.utils import timezone
from rest_framework import serializers

from monitoring.api.principal import Limits, Scope
from monitoring.api.strict_serializer import StrictSerializer
from sopllm.access.models import ApiKey, check_owner

LIMIT_FIELDS = tuple(Limits.__dataclass_fields__)


def _owner(value: str) -> None:
    try:
        check_owner(value)
    except DjangoValidationError as error:
        raise serializers.ValidationError(error.messages) from error


class NewApiKeySerializer(StrictSerializer):
    """What a new key is to be; a limit that is left out is none."""

    owner = serializers.CharField(max_length=63, validators=[_owner])
    name = serializers.CharField(max_length=100, required=False, allow_blank=True)
    scopes = serializers.MultipleChoiceField(
        choices=[scope.value for scope in Scope], default={Scope.TASKS.value}, allow_empty=False
    )
    expires_at = serializers.DateTimeField(required=False, allow_null=True)
    requests_per_second = serializers.FloatField(
        required=False, allow_null=True, min_value=0.01, max_value=100_000
    )
    max_pending_tasks = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=2**31 - 1
    )
    max_running_tasks = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, max_value=2**31 - 1
    )
    max_priority = serializers.FloatField(
        required=False, allow_null=True, min_value=0, max_value=100
    )
    max_tokens_per_day = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=2**53
    )

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


class MeSerializer(serializers.Serializer[Any]):
    """Who asks."""

    name = serializers.CharField(help_text="The prefix of the key, or the name of the user.")
    owner = serializers.CharField()
    scopes = serializers.ListField(child=serializers.ChoiceField([each.value for each in Scope]))
    is_staff = serializers.BooleanField()
    limits = serializers.DictField(child=serializers.FloatField(allow_null=True))
    today = serializers.DictField(
        child=serializers.IntegerField(), help_text="What your tasks have used since midnight, UTC."
    )


class TicketSerializer(serializers.Serializer[Any]):
    """Lets in once, as `?ticket=…`."""

    ticket = serializers.CharField()
    expires_in_seconds = serializers.IntegerField()
