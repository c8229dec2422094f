"""The route of an owner's webhook secret."""

from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response

from inference.models import WebhookSecret
from inference.webhooks.signing import secret_of
from monitoring.api import query_parameters
from monitoring.api.errors import Conflict
from monitoring.api.permissions import needs
from monitoring.api.principal import Scope, owner_of


class WebhookSecretSerializer(serializers.ModelSerializer[WebhookSecret]):
    """When your secret was made, by which time `version` tells; never the secret."""

    version = serializers.IntegerField(help_text="0: you have made none yet.")
    previous_signs_until = serializers.DateTimeField(allow_null=True)

    class Meta:
        model = WebhookSecret
        fields = ("version", "made_at", "previous_signs_until")


class NewWebhookSecretSerializer(WebhookSecretSerializer):
    """A new secret; `secret` is shown this once."""

    secret = serializers.CharField()

    class Meta(WebhookSecretSerializer.Meta):
        fields: Any = ("secret", *WebhookSecretSerializer.Meta.fields)


@extend_schema(methods=["GET"], responses=WebhookSecretSerializer)
@extend_schema(methods=["POST"], request=None, responses={201: NewWebhookSecretSerializer})
@needs(Scope.TASKS)
@api_view(["GET", "POST"])
def webhook_secret(request: Request) -> Response:
    """What your webhooks are signed with: GET says when it was made, POST shows a new one.

    The one before signs too for 24 hours.
    """
    query_parameters.refuse_unknown(request, ())
    owner = owner_of(request)
    if request.method == "GET":
        return Response(WebhookSecretSerializer(WebhookSecret.objects.of(owner)).data)
    if not settings.WEBHOOK_SECRETS:
        raise Conflict("Webhooks cannot be signed here: have the operator set WEBHOOK_SECRETS.")
    made = WebhookSecret.objects.renew(owner)
    secret = secret_of(owner, made.version, settings.WEBHOOK_SECRETS[0])
    return Response({"secret": secret, **WebhookSecretSerializer(made).data}, status=201)
