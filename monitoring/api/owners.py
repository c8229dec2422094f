"""Whose a row is, for staff that has signed in: it sees the rows of all owners."""

from typing import Any

from django.db.models import QuerySet
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied, ValidationError
from rest_framework.fields import SkipField
from rest_framework.filters import BaseFilterBackend
from rest_framework.request import Request

from monitoring.api.principal import OWNER_PATTERN, principal_of


class OwnerField(serializers.CharField):
    """The owner of a row; there is no such member for those who see their own rows alone.

    The serializer's context must have the request, or nobody sees it.
    """

    def __init__(self) -> None:
        super().__init__(required=False, help_text="For staff that has signed in.")

    def get_attribute(self, instance: Any) -> Any:
        request: Request | None = self.context.get("request")
        if request is None or not principal_of(request).is_staff:
            raise SkipField
        return super().get_attribute(instance)


class OwnerFilter(BaseFilterBackend):
    """`?owner=` narrows a list of the rows of all owners. Raises PermissionDenied for others."""

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> Any:
        owner = request.query_params.get("owner")
        if owner is None:
            return queryset
        if not principal_of(request).is_staff:
            raise PermissionDenied("You see your own alone: leave out `owner`.")
        if not OWNER_PATTERN.fullmatch(owner):
            raise ValidationError({"owner": ["Give the name of an owner."]})
        return queryset.filter(owner=owner)

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        text = "Of this owner alone; for staff that has signed in."
        schema = {"type": "string"}
        return [
            {"name": "owner", "required": False, "in": "query", "description": text}
            | {"schema": schema}
        ]
