"""/v1/batches: files of requests that are answered when there is nothing more urgent."""

import re
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, TypedDict

from django.db import transaction
from django.db.models.functions import Now
from drf_spectacular.utils import extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from inference import dispatch
from inference.api.submitting import check_priority
from inference.models import Batch, BatchError, StoredFile
from inference.openai.batches.endpoints import ENDPOINTS
from inference.openai.pages import PARAMETERS, page
from inference.openai.tasks import PRIORITY, requested_priority
from inference.openai.viewset import OpenAIViewSet
from inference.webhooks import urls as webhook_urls
from monitoring import database_clock
from monitoring.api.errors import Conflict, LimitReached
from monitoring.api.metadata import MetadataField
from monitoring.api.principal import principal_of
from monitoring.api.strict_serializer import StrictSerializer

Status = Batch.Status

_WINDOW = re.compile(r"^([1-9][0-9]{0,3})([mhd])$")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_MAX_WINDOW = timedelta(days=30)
_MAX_UNFINISHED = 100
_RETRY_AFTER_SECONDS = 60


class RequestCounts(TypedDict):
    """Of the requests that have an answer; those of a file that is not checked yet are none."""

    total: int
    completed: int
    failed: int


class BatchErrorList(TypedDict):
    object: str
    data: list[BatchError]


class BatchObject(TypedDict):
    """A batch as OpenAI describes it; times are seconds since 1970."""

    id: str
    object: str
    endpoint: str
    errors: BatchErrorList | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, Any]


@extend_schema_serializer(many=False)
class BatchList(TypedDict):
    object: str
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchRequestSerializer(StrictSerializer):
    input_file_id = serializers.CharField(max_length=100)
    endpoint = serializers.ChoiceField(choices=ENDPOINTS)
    completion_window = serializers.RegexField(
        _WINDOW, help_text="Such as 24h, 30m or 7d; up to 30 days."
    )
    metadata = MetadataField(required=False, allow_null=True)
    webhook_url = serializers.CharField(
        required=False, allow_null=True, max_length=2048, help_text="Called when the batch ends."
    )


class BatchViewSet(OpenAIViewSet):
    """Batches of requests."""

    lookup_value_regex = "batch_[0-9a-f]{32}"
    known_parameters = {"list": ("after", "limit")}

    @extend_schema(
        parameters=[PRIORITY], request=BatchRequestSerializer, responses={200: BatchObject}
    )
    def create(self, request: Request) -> Response:
        """Answer the requests in a file, one a line: `{"custom_id", "method", "url", "body"}`.

        They go after all tasks of a priority above 0, unless the header `X-Priority`, or the
        `priority` of a body, says otherwise.
        """
        fields = BatchRequestSerializer().run_validation(request.data)
        principal = principal_of(request)
        priority = requested_priority(request) or 0.0
        check_priority(principal, priority)
        window = _WINDOW.fullmatch(fields["completion_window"])
        assert window is not None, "the serializer has checked it"
        seconds = int(window[1]) * _UNITS[window[2]]
        if seconds > _MAX_WINDOW:
            raise ValidationError({"completion_window": ["Give up to 30d."]})
        webhook_url = fields.get("webhook_url") or ""
        if webhook_url:
            try:
                webhook_urls.check(webhook_url)
            except webhook_urls.RefusedUrlError as error:
                raise ValidationError({"webhook_url": [str(error)]}) from error
        if Batch.objects.owned_by(principal.owner).unfinished().count() >= _MAX_UNFINISHED:
            message = f"{_MAX_UNFINISHED} of your batches have not ended: wait, or cancel some."
            raise LimitReached(message, _RETRY_AFTER_SECONDS, "unfinished_batches")
        now = database_clock.now()
        with transaction.atomic():
            files = StoredFile.objects.owned_by(principal.owner).select_for_update()
            file = files.filter(pk=fields["input_file_id"]).first()
            if file is None or file.purpose != StoredFile.Purpose.BATCH:
                message = "There is no such file of the purpose batch: POST /v1/files stores one."
                raise ValidationError({"input_file_id": [message]})
            batch = Batch.objects.create(
                owner=principal.owner,
                endpoint=fields["endpoint"],
                completion_window=fields["completion_window"],
                metadata=fields.get("metadata") or {},
                priority=priority,
                limits=asdict(principal.limits),
                credential=principal.credential,
                webhook_url=webhook_url,
                input_file=file,
                input_file_name=file.pk,
                created_at=now,
                deadline_at=now + seconds,
                due_at=Now(),
            )
        dispatch.enqueue([dispatch.ADVANCE_BATCHES])
        return Response(batch_object(batch))

    @extend_schema(
        parameters=PARAMETERS,
        responses={200: BatchList},
    )
    def list(self, request: Request) -> Response:
        """Own batches, newest first."""
        return page(request, Batch.objects.owned_by(principal_of(request).owner), batch_object)

    @extend_schema(responses={200: BatchObject})
    def retrieve(self, request: Request, pk: str) -> Response:
        """A batch, and how many of its requests have an answer."""
        return Response(batch_object(self._batch(pk)))

    @extend_schema(request=None, responses={200: BatchObject})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Cancel what has not ended; the answers that there are stay."""
        batch = self._batch(pk)
        if not batch.cancel():
            batch.refresh_from_db()
            raise Conflict(f"The batch is {batch.status}: there is nothing to cancel.")
        return Response(batch_object(self._batch(pk)))

    def _batch(self, pk: str) -> Batch:
        owner = principal_of(self.request).owner
        batch = Batch.objects.owned_by(owner).filter(pk=pk).first()
        if batch is None:
            raise NotFound(f"There is no batch {pk}; ended ones are kept for a time.")
        return batch


def batch_object(batch: Batch) -> BatchObject:
    """Its files are named once they can be read."""
    has_files = batch.has_ended and batch.status != Status.FAILED
    return BatchObject(
        id=batch.pk,
        object="batch",
        endpoint=batch.endpoint,
        errors=BatchErrorList(object="list", data=batch.errors) if batch.errors else None,
        input_file_id=batch.input_file_name,
        completion_window=batch.completion_window,
        status=batch.status,
        output_file_id=batch.output_file_id if has_files else None,
        error_file_id=batch.error_file_id if has_files else None,
        created_at=int(batch.created_at.timestamp()),
        in_progress_at=_seconds(batch.in_progress_at),
        expires_at=int(batch.deadline_at.timestamp()),
        finalizing_at=_seconds(batch.finalizing_at),
        completed_at=_ended_at(batch, Status.COMPLETED),
        failed_at=_ended_at(batch, Status.FAILED),
        expired_at=_ended_at(batch, Status.EXPIRED),
        cancelling_at=_seconds(batch.cancelling_at),
        cancelled_at=_ended_at(batch, Status.CANCELLED),
        request_counts=RequestCounts(
            total=batch.num_requests, completed=batch.num_completed, failed=batch.num_failed
        ),
        metadata=batch.metadata,
    )


def _ended_at(batch: Batch, status: Status) -> int | None:
    return _seconds(batch.finished_at) if batch.status == status else None


def _seconds(moment: datetime | None) -> int | None:
    return int(moment.timestamp()) if moment else None
