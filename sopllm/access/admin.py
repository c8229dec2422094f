"""API keys in the admin: made, shown once, limited and revoked there; and what owners use."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString

from inference.admin import ReadOnlyAdmin
from monitoring.api.principal import Limits, Scope
from monitoring.models import OwnerUse
from sopllm.access.models import ApiKey
from sopllm.access.use_plot import plot


class ApiKeyForm(forms.ModelForm[ApiKey]):
    scopes = forms.MultipleChoiceField(
        choices=[(scope.value, scope.value) for scope in Scope],
        widget=forms.CheckboxSelectMultiple,
        initial=[Scope.TASKS.value],
    )

    def clean_expires_at(self) -> Any:
        expires_at = self.cleaned_data["expires_at"]
        if "expires_at" in self.changed_data and expires_at and expires_at <= timezone.now():
            raise ValidationError("It is over: give a time to come.")
        return expires_at


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin[ApiKey]):
    form = ApiKeyForm
    list_display = (
        *("prefix", "owner", "name", "scopes", "last_used_at", "expires_at", "revoked_at"),
        "created_at",
    )
    list_filter = ("revoked_at", "expires_at")
    search_fields = ("prefix", "owner", "name")
    fieldsets = (
        (None, {"fields": ("owner", "name", "scopes", "expires_at")}),
        (
            "Limits",
            {
                "fields": tuple(Limits.__dataclass_fields__),
                "description": "Those that are left empty are the service's defaults, if any.",
            },
        ),
    )
    times = ("created_at", "last_used_at", "revoked_at")
    actions = ("revoke",)

    class Media:
        css = {"all": ("sopllm/use_plot.css",)}

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        known = ("Key", {"fields": ("prefix", *self.times)})
        about = "Of all keys of the owner, and of its user, by day in UTC."
        use = ("Use", {"fields": ("last_days",), "description": about})
        return fieldsets if obj is None else (known, use, *fieldsets)

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        return () if obj is None else ("prefix", *self.times, "owner", "last_days")

    @admin.display(description="Last seven days")
    def last_days(self, key: ApiKey) -> SafeString:
        return plot(key.owner)

    def save_model(self, request: HttpRequest, key: ApiKey, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, key, form, change)
            return
        made, text = ApiKey.objects.make(**form.cleaned_data)
        key.pk, key.prefix = made.pk, made.prefix
        messages.warning(request, f"Copy the key now, it is not shown again: {text}")

    @admin.action(description="Revoke the selected keys", permissions=["change"])
    def revoke(self, request: HttpRequest, keys: QuerySet[ApiKey]) -> None:
        num_revoked = ApiKey.objects.filter(pk__in=keys.values("pk")).revoke()
        messages.success(request, f"{num_revoked} keys are revoked.")


@admin.register(OwnerUse)
class OwnerUseAdmin(ReadOnlyAdmin, admin.ModelAdmin[OwnerUse]):
    """What each owner has used on each day; users have no key whose page could tell."""

    list_display = ("owner", "day", "num_tasks", "prompt_tokens", "completion_tokens")
    date_hierarchy = "day"
    search_fields = ("owner",)
    ordering = ("-day", "owner")
    fields = (*list_display, "last_days")
    readonly_fields = ("last_days",)

    class Media:
        css = {"all": ("sopllm/use_plot.css",)}

    def has_delete_permission(self, request: HttpRequest, obj: OwnerUse | None = None) -> bool:
        return False

    @admin.display(description="Last seven days")
    def last_days(self, use: OwnerUse) -> SafeString:
        return plot(use.owner)
