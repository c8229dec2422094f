"""The routes of tasks: validate, call one thing, respond."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponseBase
from django.utils import timezone
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from inference.api import submission, task_stream
from inference.api.deferred_response import WAIT_PARAMETER, long_poll, requested_seconds
from inference.api.filters import TaskFilters
from inference.api.report import report
from inference.api.sse_cursor import FINAL_ID
from inference.api.task_serializers import (
    MAX_BATCH,
    MAX_KEY_LENGTH,
    ReportSerializer,
    TaskSubmissionSerializer,
    submission_validator,
)
from inference.lifecycle import finish, submit
from inference.models import GenerationTask, queue_positions
from inference.task_body import TaskSerializer, task_body
from monitoring.api.errors import Conflict, LimitReached, QueueFull
from monitoring.api.pagination import StablePagination
from monitoring.api.principal import Limits, Scope, owner_of, principal_of
from monitoring.api.query_parameters import StrictViewSet
from monitoring.models import OwnerUse

# Tasks end sooner or later: a guess.
_PENDING_WAIT_SECONDS = 5


@contextmanager
def _refusals() -> Iterator[None]:
    """What the lifecycle refuses, as HTTP says it."""
    try:
        yield
    except submit.IdempotencyConflictError as error:
        message = f"The idempotency key {error} was used for another request: take a new one."
        raise Conflict(message) from error
    except submit.QueueFullError as error:
        raise QueueFull from error
    except submit.PendingLimitError as error:
        message = "You have as many pending tasks as your key allows: wait for some of them."
        raise LimitReached(message, _PENDING_WAIT_SECONDS) from error
    except submit.ConversationGoneError as error:
        raise Conflict("The conversation has been deleted: begin another one.") from error


class TaskViewSet(StrictViewSet, mixins.ListModelMixin, viewsets.GenericViewSet[GenerationTask]):
    """Generation tasks: submit, read, wait, cancel, delete."""

    scopes = (Scope.TASKS,)
    queryset = GenerationTask.objects.none()
    serializer_class = TaskSerializer
    pagination_class = StablePagination
    filter_backends = [DjangoFilterBackend]
    filterset_class = TaskFilters
    lookup_value_regex = "task_[0-9a-f]{32}"
    known_parameters = {
        "list": (*TaskFilters.base_filters, "limit", "cursor"),
        "retrieve": ("wait",),
        "stream": ("last_event_id",),
    }

    def get_queryset(self) -> QuerySet[GenerationTask]:
        principal, tasks = principal_of(self.request), GenerationTask.objects.all()
        return tasks if principal.is_staff else tasks.owned_by(principal.owner)

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        """The form of the browsable API is the submission's."""
        return TaskSubmissionSerializer if self.action in ("create", "batch") else TaskSerializer

    def get_object(self) -> GenerationTask:
        task = GenerationTask.objects.read(self.kwargs["pk"])
        if task is None or not principal_of(self.request).may_act_for(task.owner):
            raise NotFound(f"There is no task {self.kwargs['pk']}; ended ones are kept for a time.")
        return task

    @extend_schema(
        request=TaskSubmissionSerializer, responses={200: TaskSerializer, 201: TaskSerializer}
    )
    def create(self, request: Request) -> Response:
        """Submit a task. Repeating an idempotency key gives the first task again, with 200."""
        with _refusals():
            task = self._first_or_new(request.data, request.headers.get("Idempotency-Key"))
            is_new = task._state.adding
            [accepted] = submit.submit([task], self._limits.max_pending_tasks)
        return Response(task_body(accepted), status=201 if is_new and accepted is task else 200)

    @extend_schema(
        request=TaskSubmissionSerializer(many=True), responses={201: TaskSerializer(many=True)}
    )
    @action(detail=False, methods=["post"], pagination_class=None, filter_backends=[])
    def batch(self, request: Request) -> Response:
        """Submit up to 1,000 tasks, all or none. An error names the index of the task."""
        if not isinstance(request.data, list) or not 1 <= len(request.data) <= MAX_BATCH:
            raise ValidationError({"tasks": [f"Send a JSON list of 1 to {MAX_BATCH} tasks."]})
        if "Idempotency-Key" in request.headers:
            message = "A batch takes no such header: give each task an idempotency_key."
            raise ValidationError({"idempotency_key": [message]})
        tasks = []
        with _refusals():
            for index, data in enumerate(request.data):
                try:
                    tasks.append(self._first_or_new(data))
                except ValidationError as error:
                    raise ValidationError({str(index): error.detail}) from error
            accepted = submit.submit(tasks, self._limits.max_pending_tasks)
        context = {"queue_positions": queue_positions(accepted)}
        return Response(TaskSerializer(accepted, many=True, context=context).data, status=201)

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Own tasks, newest first; staff that has signed in sees those of all owners."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        context = {"queue_positions": queue_positions(list(page))}
        return self.get_paginated_response(TaskSerializer(page, many=True, context=context).data)

    @extend_schema(parameters=[WAIT_PARAMETER])
    def retrieve(self, request: Request, pk: str) -> HttpResponseBase:
        """A task; with `?wait=30` or `Prefer: wait=30` as soon as it has ended."""

        def read() -> tuple[object, bool]:
            task = self.get_object()
            return task_body(task), task.has_ended

        return long_poll(self, pk, requested_seconds(request), read)

    @extend_schema(responses=ReportSerializer)
    @action(detail=True, methods=["get"])
    def report(self, request: Request, pk: str) -> Response:
        """A task with its metrics, parameters as used, attempts and logs."""
        return Response(report(self.get_object()))

    @extend_schema(parameters=task_stream.PARAMETERS, responses=task_stream.RESPONSES)
    @action(detail=True, methods=["get"], content_negotiation_class=task_stream.AnyAccept)
    def stream(self, request: Request, pk: str) -> HttpResponseBase:
        """The text as it comes, then the task: `token`, `restart`, and how it has ended."""
        task = self.get_object()
        event_id = task_stream.last_event_id(request)
        if task.has_ended and event_id == FINAL_ID:
            return Response(status=status.HTTP_204_NO_CONTENT)  # no need to connect again
        return task_stream.TaskStream(task, task_stream.cursor_after(event_id))

    @extend_schema(request=None, responses=TaskSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Cancel: at once while pending; a processing task ends within moments, its text kept."""
        task = self.get_object()
        if not finish.cancel(task):
            raise Conflict(f"The task has ended ({task.status}): there is nothing to cancel.")
        task.refresh_from_db()
        return Response(task_body(task))

    def destroy(self, request: Request, pk: str) -> Response:
        """Delete an ended task with its stream, logs and attempts."""
        task = self.get_object()
        if not finish.delete(task):
            raise Conflict("The task has not ended: cancel it first, then delete it.")
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _first_or_new(self, data: Any, key: str | None = None) -> GenerationTask:
        """The task that was submitted with the idempotency key before, else a new one, unsaved.

        A repeat is answered though its model is gone or the queue is full.
        """
        fields = submission_validator().run_validation(data)
        key = key or fields.get("idempotency_key")
        if key and len(key) > MAX_KEY_LENGTH:
            message = f"Use at most {MAX_KEY_LENGTH} characters."
            raise ValidationError({"idempotency_key": [message]})
        owner = owner_of(self.request)
        if key and (first := submit.first_with_key(owner, key, submission.fingerprint(fields))):
            return first
        self._check_limits(fields)
        return submission.build_task(owner, fields, key, self._limits.max_running_tasks)

    @property
    def _limits(self) -> Limits:
        return principal_of(self.request).limits

    def _check_limits(self, fields: dict[str, Any]) -> None:
        """Raise ValidationError or LimitReached for what the caller's key does not allow."""
        limits = self._limits
        if limits.max_priority is not None and fields["priority"] > limits.max_priority:
            message = f"Your key allows priorities up to {limits.max_priority:g}."
            raise ValidationError({"priority": [message]})
        if limits.max_tokens_per_day is not None:
            use = OwnerUse.objects.today(owner_of(self.request))
            if use["prompt_tokens"] + use["completion_tokens"] >= limits.max_tokens_per_day:
                message = (
                    f"Your key's {limits.max_tokens_per_day} tokens of today are used: come again "
                    "after midnight, UTC."
                )
                now = timezone.now()
                midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
                raise LimitReached(message, 86_400 - (now - midnight).total_seconds())
