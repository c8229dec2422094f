"""The routes of tasks: validate, call one thing, respond."""

from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponseBase
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from inference.api import task_stream
from inference.api.comparison import ComparisonSerializer, compare
from inference.api.deferred_response import WAIT_PARAMETER, long_poll, requested_seconds
from inference.api.export import export
from inference.api.filters import TaskFilters
from inference.api.preflight import DRY_RUN, TASK_OR_PREFLIGHT, preflight
from inference.api.report import report
from inference.api.sse_cursor import FINAL_ID, SSEWriter
from inference.api.submitting import IDEMPOTENCY_KEY, first_or_new, refusals, requeue
from inference.api.task_serializers import (
    MAX_BATCH,
    ReportSerializer,
    TaskSubmissionSerializer,
    submission_validator,
)
from inference.lifecycle import finish, submit
from inference.models import GenerationTask, queue_positions
from inference.task_body import TaskSerializer, task_body
from monitoring.api.errors import Conflict
from monitoring.api.owners import OwnerFilter
from monitoring.api.pagination import StablePagination
from monitoring.api.principal import Scope, principal_of
from monitoring.api.query_parameters import StrictViewSet, boolean


class TaskViewSet(StrictViewSet, mixins.ListModelMixin, viewsets.GenericViewSet[GenerationTask]):
    """Generation tasks: submit, read, wait, cancel, delete."""

    scopes = (Scope.TASKS,)
    queryset = GenerationTask.objects.none()
    serializer_class = TaskSerializer
    pagination_class = StablePagination
    filter_backends = [OwnerFilter, DjangoFilterBackend]
    filterset_class = TaskFilters
    lookup_value_regex = "task_[0-9a-f]{32}"
    known_parameters = {
        "create": ("dry_run",),
        "list": (*TaskFilters.base_filters, "owner", "limit", "cursor"),
        "dead": (*TaskFilters.base_filters, "owner", "limit", "cursor"),
        "retrieve": ("wait",),
        "stream": ("last_event_id",),
    }

    def get_queryset(self) -> QuerySet[GenerationTask]:
        principal, tasks = principal_of(self.request), GenerationTask.objects.all()
        if self.action == "dead":
            tasks = tasks.dead()
        return tasks if principal.is_staff else tasks.owned_by(principal.owner)

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        """The form of the browsable API is the submission's."""
        return TaskSubmissionSerializer if self.action in ("create", "batch") else TaskSerializer

    def get_object(self) -> GenerationTask:
        return self._read(self.kwargs["pk"])

    def _read(self, task_id: str) -> GenerationTask:
        task = GenerationTask.objects.read(task_id)
        if task is None or not principal_of(self.request).may_act_for(task.owner):
            raise NotFound(f"There is no task {task_id}; ended ones are kept for a time.")
        return task

    @extend_schema(
        parameters=[IDEMPOTENCY_KEY, DRY_RUN],
        request=TaskSubmissionSerializer,
        responses={200: TASK_OR_PREFLIGHT, 201: TaskSerializer},
    )
    def create(self, request: Request) -> HttpResponseBase:
        """Submit a task. Repeating an idempotency key gives the first task again, with 200.

        With `?dry_run=true` nothing is submitted: the answer says what would become of it.
        """
        principal = principal_of(request)
        if boolean(request, "dry_run"):
            return preflight(self, request.data, request.META.get("HTTP_IDEMPOTENCY_KEY"))
        with refusals():
            fields = submission_validator().run_validation(request.data)
            task = first_or_new(principal, fields, request.META.get("HTTP_IDEMPOTENCY_KEY"))
            is_new = task._state.adding
            [accepted] = submit.submit([task], principal.limits.max_pending_tasks)
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
        principal, tasks = principal_of(request), []
        with refusals():
            for index, data in enumerate(request.data):
                try:
                    fields = submission_validator().run_validation(data)
                    tasks.append(first_or_new(principal, fields))
                except ValidationError as error:
                    raise ValidationError({str(index): error.detail}) from error
            accepted = submit.submit(tasks, principal.limits.max_pending_tasks)
        context = {"queue_positions": queue_positions(accepted)}
        return Response(TaskSerializer(accepted, many=True, context=context).data, status=201)

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Own tasks, newest first; staff that has signed in sees those of all owners."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        positions = {"queue_positions": queue_positions(list(page))}
        context = {**self.get_serializer_context(), **positions}
        return self.get_paginated_response(TaskSerializer(page, many=True, context=context).data)

    @extend_schema(parameters=[WAIT_PARAMETER])
    def retrieve(self, request: Request, pk: str) -> HttpResponseBase:
        """A task; with `?wait=30` or `Prefer: wait=30` as soon as it has ended."""

        def read() -> tuple[object, bool]:
            task = self.get_object()
            if principal_of(request).is_staff:
                shown = TaskSerializer(task, context=self.get_serializer_context()).data
                return shown, task.has_ended
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
        return task_stream.TaskStream(task, SSEWriter(task_stream.cursor_after(event_id)))

    @extend_schema(request=None, responses=TaskSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Cancel: at once while pending; a processing task ends within moments, its text kept."""
        task = self.get_object()
        if not finish.cancel(task):
            raise Conflict(f"The task has ended ({task.status}): there is nothing to cancel.")
        task.refresh_from_db()
        return Response(task_body(task))

    @extend_schema(request=None, responses={201: TaskSerializer})
    @action(detail=True, methods=["post"])
    def requeue(self, request: Request, pk: str) -> Response:
        """Submit an ended task anew; each of the two names the other one."""
        return Response(task_body(requeue(principal_of(request), self.get_object())), status=201)

    @extend_schema(responses=TaskSerializer(many=True))
    @action(detail=False, methods=["get"])
    def dead(self, request: Request) -> Response:
        """Tasks that failed for no fault of the request and were not requeued, newest first."""
        return self.list(request)

    @extend_schema(responses=ComparisonSerializer)
    @action(detail=True, methods=["get"], url_path=r"diff/(?P<other>task_[0-9a-f]{32})")
    def diff(self, request: Request, pk: str, other: str) -> Response:
        """Two tasks side by side: parameters as used, answers, times and costs."""
        return Response(compare(self.get_object(), self._read(other)))

    @extend_schema(responses=TaskSubmissionSerializer)
    @action(detail=True, methods=["get"])
    def export(self, request: Request, pk: str) -> Response:
        """What asks for the same answer again, for `POST /tasks`, with where that came from."""
        return Response(export(self.get_object()))

    def destroy(self, request: Request, pk: str) -> Response:
        """Delete an ended task with its stream, logs and attempts."""
        task = self.get_object()
        if not finish.delete(task):
            raise Conflict("The task has not ended: cancel it first, then delete it.")
        return Response(status=status.HTTP_204_NO_CONTENT)
