"""What lists of tasks and models can be narrowed to."""

from datetime import datetime

from django import forms
from django_filters import rest_framework as filters

from inference.models import GenerationTask, RegisteredModel
from monitoring.api import query_parameters


class MomentField(forms.Field):
    def to_python(self, value: str | None) -> datetime | None:
        try:
            return query_parameters.moment(value) if value else None
        except ValueError as error:
            raise forms.ValidationError(str(error)) from error


class MomentFilter(filters.IsoDateTimeFilter):  # type: ignore[misc]
    field_class = MomentField


class TaskFilters(filters.FilterSet):  # type: ignore[misc]
    status = filters.ChoiceFilter(choices=GenerationTask.Status.choices)
    model = filters.CharFilter("requested_model")
    conversation_id = filters.CharFilter()
    created_after = MomentFilter("created_at", "gt")
    created_before = MomentFilter("created_at", "lt")


class ModelFilters(filters.FilterSet):  # type: ignore[misc]
    provider = filters.ChoiceFilter(choices=RegisteredModel.Provider.choices)
    loaded = filters.ChoiceFilter(
        choices=[("true", "true"), ("false", "false")],
        field_name="status",
        method=lambda models, field, text: (models.filter if text == "true" else models.exclude)(
            **{field: RegisteredModel.Status.LOADED}
        ),
    )
