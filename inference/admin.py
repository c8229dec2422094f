from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html
from rest_framework.exceptions import ValidationError

from inference import estimates
from inference.api import submission
from inference.lifecycle import finish, submit
from inference.loading import requests
from inference.models import (
    Batch,
    GenerationTask,
    RegisteredModel,
    StoredFile,
    TaskAttempt,
    WebhookDelivery,
    queue_positions,
)
from inference.providers.cloud.endpoints import reports
from inference.registry import downloads
from inference.webhooks.deliveries import deliver_soon
from monitoring.api.errors import in_words


def coloured(status: str) -> str:
    return format_html('<b class="status-{}">{}</b>', status, status)


class ReadOnlyAdmin:
    """Rows that only the service itself makes and changes."""

    opts: Any

    class Media:
        css = {"all": ("inference/admin.css",)}

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_act_permission(self, request: HttpRequest) -> bool:
        """Actions are for users who have the permission to change such rows."""
        return request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}")

    @admin.display(description="Status", ordering="status")
    def coloured_status(self, row: Any) -> str:
        return coloured(row.status)


class TaskAttemptInline(ReadOnlyAdmin, admin.TabularInline[TaskAttempt, GenerationTask]):
    model = TaskAttempt
    extra = 0
    can_delete = False
    ordering = ("number",)


class WebhookDeliveryInline(ReadOnlyAdmin, admin.TabularInline[WebhookDelivery, GenerationTask]):
    model = WebhookDelivery
    extra = 0
    can_delete = False
    fields = ("id", "event", "status", "attempt", "due_at", "delivered_at")
    show_change_link = True


@admin.register(GenerationTask)
class GenerationTaskAdmin(ReadOnlyAdmin, admin.ModelAdmin[GenerationTask]):
    list_display = (
        *("id", "coloured_status", "model_name", "priority", "attempt", "created_at"),
        *("finished_at", "gpu_seconds", "cost_usd", "error_code", "owner"),
    )
    list_filter = ("status", "queue", "model_name", "error_code")
    search_fields = ("id", "owner", "idempotency_key", "conversation__id")
    date_hierarchy = "created_at"
    ordering = ("-created_at",)
    list_select_related = False
    show_full_result_count = False
    inlines = (TaskAttemptInline, WebhookDeliveryInline)
    actions = ("cancel_tasks", "run_again")
    readonly_fields = ("expected",)

    @admin.display(description="Expected to start and end")
    def expected(self, task: GenerationTask) -> str:
        estimate = estimates.of(task, queue_positions([task]).get(task.pk))
        if estimate is None:
            return "-"
        start, end = (f"{at:%Y-%m-%d %H:%M:%S}" for at in (estimate.start_at, estimate.finish_at))
        eta = estimate.eta_seconds
        return f"{start} and {end} UTC, ends in {eta['p10']:.0f} to {eta['p90']:.0f} s"

    def get_queryset(self, request: HttpRequest) -> QuerySet[GenerationTask]:
        """The list does without what may be long."""
        tasks = super().get_queryset(request)
        page = request.resolver_match
        is_list = page is not None and str(page.url_name).endswith("_changelist")
        return tasks.defer("request", "result", "metadata") if is_list else tasks

    def has_delete_permission(
        self, request: HttpRequest, obj: GenerationTask | None = None
    ) -> bool:
        return (obj is None or obj.has_ended) and super().has_delete_permission(request, obj)

    @admin.action(description="Cancel the selected tasks", permissions=["act"])
    def cancel_tasks(self, request: HttpRequest, tasks: QuerySet[GenerationTask]) -> None:
        num_cancelled = sum(finish.cancel(task) for task in tasks)
        messages.success(request, f"{num_cancelled} tasks cancelled.")

    @admin.action(description="Run the selected tasks again, as new ones", permissions=["act"])
    def run_again(self, request: HttpRequest, tasks: QuerySet[GenerationTask]) -> None:
        ended = [task for task in tasks if task.has_ended]
        try:
            submit.resubmit([submission.again(task) for task in ended])
        except ValidationError as error:
            messages.error(request, in_words(error))
            return
        except submit.AlreadyRequeuedError as error:
            messages.error(request, f"{error} was requeued already.")
            return
        except submit.QueueFullError:
            messages.error(request, "Too many tasks are pending: try again in a few seconds.")
            return
        messages.success(request, f"{len(ended)} tasks run again.")


@admin.register(TaskAttempt)
class TaskAttemptAdmin(ReadOnlyAdmin, admin.ModelAdmin[TaskAttempt]):
    list_display = (
        *("task_id", "number", "coloured_outcome", "model_name", "endpoint", "worker"),
        *("error_code", "started_at", "ended_at"),
    )
    list_filter = ("outcome", "model_name", "error_code")
    search_fields = ("task__id", "worker")
    ordering = ("-id",)
    show_full_result_count = False

    @admin.display(description="Outcome", ordering="outcome")
    def coloured_outcome(self, attempt: TaskAttempt) -> str:
        return coloured(attempt.outcome)


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(ReadOnlyAdmin, admin.ModelAdmin[WebhookDelivery]):
    """The list shows the host alone: the rest of a URL can hold a token."""

    list_display = (
        *("id", "coloured_status", "event", "subject_id", "host", "attempt"),
        *("due_at", "delivered_at", "created_at"),
    )
    list_filter = ("status", "event")
    search_fields = ("id", "task__exact", "batch__exact")
    search_help_text = "The id of a task or batch, or a part of the webhook's own."
    ordering = ("-created_at",)
    # The task or batch may be deleted.
    fields = (
        *(
            "id",
            "subject_id",
            "url",
            "event",
            "status",
            "attempt",
            "worker",
            "due_at",
            "lease_until",
        ),
        *("give_up_at", "created_at", "delivered_at", "expires_at", "log", "payload"),
    )
    actions = ("deliver_again",)

    @admin.action(description="Deliver again", permissions=["act"])
    def deliver_again(self, request: HttpRequest, deliveries: QuerySet[WebhookDelivery]) -> None:
        chosen = WebhookDelivery.objects.filter(pk__in=deliveries.values("pk"))
        num_due = chosen.deliver_again()
        deliver_soon(num_due)
        messages.success(request, f"{num_due} webhooks are delivered again.")


@admin.register(RegisteredModel)
class RegisteredModelAdmin(ReadOnlyAdmin, admin.ModelAdmin[RegisteredModel]):
    """Registering needs the file's checks: POST /api/v1/models/register does them."""

    list_display = (
        *("name", "provider", "coloured_status", "asked_for", "context_window", "size"),
        *("loaded_by", "last_used_at", "unload_at", "num_crashes"),
    )
    list_filter = ("provider", "status")
    search_fields = ("name",)
    readonly_fields = ("endpoints",)
    actions = ("load_models", "unload_models")

    @admin.display(description="Endpoints asked of late", empty_value="-")
    def endpoints(self, model: RegisteredModel) -> str | None:
        states = reports.read().get(model.pk, {})
        lines = [f"{name}: {each.health}, {each.in_flight} calls" for name, each in states.items()]
        return "; ".join(lines) or None

    @admin.display(description="Asked for", ordering="requested", empty_value="-")
    def asked_for(self, model: RegisteredModel) -> str | None:
        return model.requested or None

    @admin.display(description="Size", ordering="size_bytes")
    def size(self, model: RegisteredModel) -> str | None:
        return None if model.size_bytes is None else filesizeformat(model.size_bytes)

    @admin.action(description="Load the selected models", permissions=["act"])
    def load_models(self, request: HttpRequest, models: QuerySet[RegisteredModel]) -> None:
        self._ask(request, models, RegisteredModel.Request.LOAD)

    @admin.action(description="Unload the selected models", permissions=["act"])
    def unload_models(self, request: HttpRequest, models: QuerySet[RegisteredModel]) -> None:
        self._ask(request, models, RegisteredModel.Request.UNLOAD)

    def _ask(
        self,
        request: HttpRequest,
        models: QuerySet[RegisteredModel],
        what: RegisteredModel.Request,
    ) -> None:
        num_asked = num_downloads = 0
        for model in models:
            if what == RegisteredModel.Request.LOAD and downloads.start_if_missing(model):
                num_downloads += 1
            elif model.provider == RegisteredModel.Provider.LOCAL:
                requests.ask(model, what)
                num_asked += 1
        messages.success(request, f"Asked to {what} {num_asked} local models.")
        if num_downloads:
            messages.success(request, f"{num_downloads} are downloaded first.")


@admin.register(Batch)
class BatchAdmin(ReadOnlyAdmin, admin.ModelAdmin[Batch]):
    list_display = (
        *("id", "coloured_status", "progress", "num_failed", "endpoint", "priority"),
        *("created_at", "deadline_at", "finished_at", "owner"),
    )
    list_filter = ("status", "endpoint")
    search_fields = ("id", "owner")
    ordering = ("-created_at",)
    actions = ("cancel_batches",)

    def has_delete_permission(self, request: HttpRequest, obj: Batch | None = None) -> bool:
        return (obj is None or obj.has_ended) and super().has_delete_permission(request, obj)

    @admin.action(description="Cancel the selected batches", permissions=["act"])
    def cancel_batches(self, request: HttpRequest, batches: QuerySet[Batch]) -> None:
        num_cancelled = sum(batch.cancel() for batch in batches)
        messages.success(request, f"{num_cancelled} batches are being cancelled.")


@admin.register(StoredFile)
class StoredFileAdmin(ReadOnlyAdmin, admin.ModelAdmin[StoredFile]):
    """Deleted by their owners, or when their time is over."""

    list_display = ("id", "filename", "purpose", "size_bytes", "created_at", "expires_at", "owner")
    list_filter = ("purpose",)
    search_fields = ("id", "owner", "filename")
    ordering = ("-created_at",)

    def has_delete_permission(self, request: HttpRequest, obj: StoredFile | None = None) -> bool:
        return False
