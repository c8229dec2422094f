"""What lists of tasks and models can be narrowed to; parameters of no list are refused."""

from datetime import UTC, datetime
from typing import Any

from django import forms
from django.utils.dateparse import parse_datetime
from django_filters import rest_framework as filters
from rest_framework.request import Request

from inference.models import GenerationTask, RegisteredModel
from monitoring.api import query_parameters


class ZonedDateTimeField(forms.Field):
    """ISO 8601 with a zone, as the API writes times."""

    def to_python(self, value: str | None) -> datetime | None:
        if not value:
            return None
        try:
            moment = parse_datetime(value)
            if moment and moment.tzinfo:
                return moment.astimezone(UTC)
        except (ValueError, OverflowError):  # no date, or before the year 1 in UTC
            pass
        raise forms.ValidationError("Give ISO 8601 with a zone: 2026-01-31T12:00:00Z.")


class ZonedDateTimeFilter(filters.IsoDateTimeFilter):  # type: ignore[misc]
    field_class = ZonedDateTimeField


class TaskFilters(filters.FilterSet):  # type: ignore[misc]
    status = filters.ChoiceFilter(choices=GenerationTask.Status.choices)
    model = filters.CharFilter("requested_model")
    conversation_id = filters.CharFilter("conversation_id")
    created_after = ZonedDateTimeFilter("created_at", "gt")
    created_before = ZonedDateTimeFilter("created_at", "lt")


class ModelFilters(filters.FilterSet):  # type: ignore[misc]
    provider = filters.ChoiceFilter(choices=RegisteredModel.Provider.choices)
    loaded = filters.ChoiceFilter(
        choices=[("true", "true"), ("false", "false")],
        field_name="status",
        method=lambda models, field, text: (models.filter if text == "true" else models.exclude)(
            **{field: RegisteredModel.Status.LOADED}
        ),
    )


class StrictFilterBackend(filters.DjangoFilterBackend):  # type: ignore[misc]
    """Refuses a parameter that neither a filter nor the pages of the list have."""

    def filter_queryset(self, request: Request, queryset: Any, view: Any) -> Any:
        known = (*view.filterset_class.base_filters, "limit", "cursor", "offset")
        query_parameters.refuse_unknown(request, known)
        return super().filter_queryset(request, queryset, view)
