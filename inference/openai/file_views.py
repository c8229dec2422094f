"""/v1/files: what batches read and write."""

from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.db import transaction
from django.db.models import ProtectedError, QuerySet
from django.http import FileResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import APIException, NotFound, ValidationError
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from inference.lifecycle import sql
from inference.models import StoredFile
from inference.openai.pages import ORDER, PARAMETERS, page, wants_ascending
from inference.openai.viewset import OpenAIViewSet
from monitoring import database_clock
from monitoring.api.errors import Conflict
from monitoring.api.principal import owner_of, principal_of
from monitoring.api.strict_serializer import StrictSerializer

Purpose = StoredFile.Purpose


class FileObject(TypedDict):
    """A file as OpenAI describes it; times are seconds since 1970."""

    id: str
    object: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str


# Where the ASGI handler lets a larger body than others through, onto the disk.
UPLOAD_PATH = "/v1/files"
CSRF_FIELD = "csrfmiddlewaretoken"


@extend_schema_serializer(many=False)
class FileList(TypedDict):
    object: str
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileTooLarge(APIException):
    """The file, or all files of the owner together."""

    status_code = 413


class UploadSerializer(StrictSerializer):
    file = serializers.FileField(help_text="JSON lines, see POST /v1/batches.")
    purpose = serializers.ChoiceField(choices=[Purpose.BATCH])


class FileViewSet(OpenAIViewSet):
    """Files for batches, and of batches."""

    parser_classes = (MultiPartParser,)
    lookup_value_regex = "file-[0-9a-f]{32}"
    known_parameters = {"list": ("purpose", "limit", "order", "after")}

    def get_serializer(self, **options: Any) -> UploadSerializer:
        """The form of the browsable API."""
        return UploadSerializer(**options)

    @extend_schema(request=UploadSerializer, responses={200: FileObject})
    def create(self, request: Request) -> Response:
        """Store a file of up to `MAX_FILE_BYTES`, for `FILE_TTL_SECONDS`."""
        # Without a body it is no form; that of the browsable API has a token beside.
        form: Any = request.data
        sent = {name: value for name, value in form.items() if name != CSRF_FIELD}
        fields = UploadSerializer().run_validation(sent)
        upload: TemporaryUploadedFile = fields["file"]
        size = upload.size or 0
        if size > settings.MAX_FILE_BYTES:
            message = f"The file is larger than {settings.MAX_FILE_BYTES} bytes: split it."
            raise FileTooLarge(message)
        now = database_clock.now()
        file = StoredFile(
            owner=owner_of(request),
            purpose=fields["purpose"],
            filename=(upload.name or "")[:255],
            size_bytes=size,
            created_at=now,
            expires_at=now + timedelta(seconds=settings.FILE_TTL_SECONDS),
        )
        Path(upload.temporary_file_path()).rename(file.path)
        try:
            with transaction.atomic():
                sql.take_turns(f"files of {file.owner}")
                file.save(force_insert=True)
                _check_quota(file.owner)
        except BaseException:
            file.path.unlink()
            raise
        return Response(file_object(file))

    @extend_schema(
        parameters=[
            OpenApiParameter("purpose", str, enum=Purpose.values),
            *PARAMETERS,
            ORDER,
        ],
        responses={200: FileList},
    )
    def list(self, request: Request) -> Response:
        """Own files, newest first unless `order` is `asc`."""
        files = self._files()
        if (purpose := request.query_params.get("purpose")) is not None:
            files = files.filter(purpose=_known_purpose(purpose))
        return page(request, files, file_object, is_ascending=wants_ascending(request))

    @extend_schema(responses={200: FileObject})
    def retrieve(self, request: Request, pk: str) -> Response:
        """What is known of a file."""
        return Response(file_object(self._file(pk)))

    @extend_schema(responses={(200, "application/jsonl"): bytes})
    @action(detail=True, methods=["get"])
    def content(self, request: Request, pk: str) -> FileResponse:
        """The file itself."""
        try:
            content = self._file(pk).path.open("rb")
        except FileNotFoundError as error:
            raise _not_found(pk) from error
        return FileResponse(content, content_type="application/jsonl")

    @extend_schema(responses={200: OpenApiTypes.OBJECT})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete a file, unless a batch reads it."""
        try:
            self._file(pk).remove()
        except ProtectedError as error:
            raise Conflict("A batch reads it: cancel the batch, or wait for its end.") from error
        return Response({"id": pk, "object": "file", "deleted": True})

    def _files(self) -> QuerySet[StoredFile]:
        return StoredFile.objects.owned_by(principal_of(self.request).owner)

    def _file(self, pk: str) -> StoredFile:
        file = self._files().filter(pk=pk).first()
        if file is None:
            raise _not_found(pk)
        return file


def file_object(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.pk,
        object="file",
        bytes=file.size_bytes or 0,
        created_at=int(file.created_at.timestamp()),
        expires_at=int(file.expires_at.timestamp()) if file.expires_at else None,
        filename=file.filename,
        purpose=file.purpose,
        status="processed",
    )


def _check_quota(owner: str) -> None:
    """Raises FileTooLarge when the owner's files are too large together."""
    limit, used = (
        settings.MAX_FILE_BYTES_PER_OWNER,
        StoredFile.objects.owned_by(owner).total_bytes(),
    )
    if used > limit:
        message = f"Your files may have {limit} bytes together, not {used}: delete some first."
        raise FileTooLarge(message)


def _known_purpose(text: str) -> str:
    if text not in Purpose.values:
        raise ValidationError({"purpose": [f"Give one of {', '.join(Purpose.values)}."]})
    return text


def _not_found(pk: str) -> NotFound:
    return NotFound(f"There is no file {pk}; files are kept for a time.")
