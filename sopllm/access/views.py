"""The routes of keys and tickets: validate, call one thing, respond."""

from dataclasses import asdict
from typing import Any

import redis
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action, api_view
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from monitoring.api import query_parameters
from monitoring.api.errors import RedisUnavailable
from monitoring.api.pagination import StablePagination
from monitoring.api.permissions import needs
from monitoring.api.principal import ANY_SCOPE, Scope, principal_of
from monitoring.api.query_parameters import StrictViewSet
from monitoring.models import OwnerUse
from sopllm.access import open_streams, tickets
from sopllm.access.models import ApiKey
from sopllm.access.serializers import (
    ApiKeySerializer,
    MadeApiKeySerializer,
    MeSerializer,
    NewApiKeySerializer,
    TicketSerializer,
)


class ApiKeyViewSet(StrictViewSet, mixins.ListModelMixin, viewsets.GenericViewSet[ApiKey]):
    """API keys: make, list, revoke."""

    scopes = (Scope.ADMIN,)
    action_scopes = {"me": ANY_SCOPE}
    queryset = ApiKey.objects.all()
    serializer_class = ApiKeySerializer
    pagination_class = StablePagination
    lookup_field = "prefix"
    lookup_value_regex = "[0-9a-f]{8}"
    known_parameters = {"list": ("limit", "cursor")}

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return NewApiKeySerializer if self.action == "create" else ApiKeySerializer

    def get_object(self) -> ApiKey:
        key = self.get_queryset().filter(prefix=self.kwargs["prefix"]).first()
        if key is None:
            raise NotFound(f"There is no key sopllm_{self.kwargs['prefix']}_….")
        return key

    @extend_schema(request=NewApiKeySerializer, responses={201: MadeApiKeySerializer})
    def create(self, request: Request) -> Response:
        """Make a key. The answer shows it, and nothing else ever will."""
        key, text = ApiKey.objects.make(**NewApiKeySerializer().run_validation(request.data))
        return Response({"key": text, **ApiKeySerializer(key).data}, status=201)

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """All keys, the newest first; those that are revoked or have expired too."""
        return super().list(request, *args, **kwargs)

    def retrieve(self, request: Request, prefix: str) -> Response:
        """A key, by the eight characters after `sopllm_`."""
        return Response(ApiKeySerializer(self.get_object()).data)

    def destroy(self, request: Request, prefix: str) -> Response:
        """Revoke a key: within five seconds it lets in nobody, and its streams have ended."""
        ApiKey.objects.filter(pk=self.get_object().pk).revoke()
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses=MeSerializer)
    @action(detail=False, methods=["get"], pagination_class=None)
    def me(self, request: Request) -> Response:
        """Who you are here, and what you may do and use."""
        principal = principal_of(request)
        body = {
            "name": principal.name,
            "owner": principal.owner,
            "scopes": sorted(principal.scopes),
            "is_staff": principal.is_staff,
            "limits": asdict(principal.limits),
            "today": OwnerUse.objects.today(principal.owner),
            "this_month": OwnerUse.objects.this_month(principal.owner),
            "open_streams": open_streams.num_open(principal.owner),
        }
        return Response(body)


@extend_schema(request=None, responses={201: TicketSerializer})
@needs(*Scope)
@api_view(["POST"])
def ticket(request: Request) -> Response:
    """A ticket for one connection within a minute, where a browser can send no key."""
    query_parameters.refuse_unknown(request, ())
    try:
        made = tickets.make(principal_of(request))
    except redis.RedisError as exc:
        raise RedisUnavailable from exc
    return Response({"ticket": made, "expires_in_seconds": tickets.SECONDS}, status=201)
