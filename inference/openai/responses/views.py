"""/v1/responses."""

from typing import TypedDict

from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from inference.api.deferred_response import long_poll
from inference.api.task_stream import CONTENT_TYPE
from inference.lifecycle import finish
from inference.models import GenerationTask
from inference.openai.answers import AnswerAtEnd
from inference.openai.errors import task_ids
from inference.openai.pages import AFTER, ORDER, wants_ascending
from inference.openai.responses.body import (
    ResponseItemList,
    ResponseObject,
    input_items,
    response_object,
)
from inference.openai.responses.request import (
    ResponseRequestSerializer,
    find,
    renamed,
    response_request,
)
from inference.openai.responses.stream import MAX_NUMBER, response_stream
from inference.openai.tasks import HEADERS, submitted
from inference.openai.viewset import OpenAIViewSet
from monitoring.api import query_parameters
from monitoring.api.errors import Conflict
from monitoring.api.principal import principal_of

_INCLUDE = ("include", "include[]")
# A processing task is cancelled within moments.
_CANCEL_SECONDS = 5.0
_ANSWERS = {200: ResponseObject, (200, CONTENT_TYPE): OpenApiTypes.STR}


class DeletedResponse(TypedDict):
    id: str
    object: str
    deleted: bool


class ResponseViewSet(OpenAIViewSet):
    """Responses: asked for, read, followed, cancelled, deleted."""

    lookup_value_regex = "[A-Za-z0-9_-]+"
    known_parameters = {
        "retrieve": ("stream", "starting_after", "include_obfuscation", *_INCLUDE),
        "input_items": ("after", "limit", "order", *_INCLUDE),
    }

    @extend_schema(
        parameters=HEADERS,
        request=ResponseRequestSerializer,
        responses=_ANSWERS,
    )
    def create(self, request: Request) -> HttpResponseBase:
        """Answer. When the client goes away, it is cancelled, unless it is in the background."""
        principal = principal_of(request)
        fields = response_request(request.data, principal.owner)
        with renamed():
            [task] = submitted(request, [fields])
        if fields["stream"]:
            return response_stream(task, is_new=True)
        if fields["response"]["background"]:
            return Response(response_object(task), headers=task_ids([task]))
        return AnswerAtEnd([task], lambda tasks: response_object(tasks[0]))

    @extend_schema(
        parameters=[
            OpenApiParameter("stream", bool, description="Its events, from the first one on."),
            query_parameters.number_parameter(
                "starting_after", 0, MAX_NUMBER, "The number of the last event that was seen."
            ),
        ],
        responses=_ANSWERS,
    )
    def retrieve(self, request: Request, pk: str) -> HttpResponseBase:
        """The response as it is now, or its events, also after its end."""
        task, after = self._task(pk), None
        if "starting_after" in request.query_params:
            after = query_parameters.whole_number(request, "starting_after", 0, 0, MAX_NUMBER)
        if not query_parameters.boolean(request, "stream"):
            return Response(response_object(task), headers=task_ids([task]))
        return response_stream(task, after, is_new=False)

    @extend_schema(request=None, responses=ResponseObject)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> HttpResponseBase:
        """Cancel; what the model has answered is kept. One that has ended stays as it is."""
        finish.cancel(self._task(pk))

        def read() -> tuple[object, bool]:
            task = self._task(pk)
            return response_object(task), task.has_ended

        return long_poll(self, self._task(pk).pk, _CANCEL_SECONDS, read)

    @extend_schema(responses={200: DeletedResponse})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete a response that has ended, with its task."""
        task = self._task(pk)
        if not finish.delete(task):
            raise Conflict("The response has not ended: cancel it first, then delete it.")
        body = DeletedResponse(id=task.response_id, object="response", deleted=True)
        return Response(body, headers=task_ids([task]))

    @extend_schema(
        parameters=[
            query_parameters.number_parameter("limit", 1, 100, "How many a page has.", 20),
            AFTER,
            ORDER,
        ],
        responses={200: ResponseItemList},
    )
    @action(detail=True, methods=["get"])
    def input_items(self, request: Request, pk: str) -> Response:
        """The items of its own input, without those of earlier responses."""
        task = self._task(pk)
        items = input_items(task)
        if not wants_ascending(request):
            items.reverse()
        if (after := request.query_params.get("after")) is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise ValidationError({"after": ["Give the id of an item of this response."]})
            items = items[ids.index(after) + 1 :]
        limit = query_parameters.whole_number(request, "limit", 20, 1, 100)
        page = items[:limit]
        body = ResponseItemList(
            object="list",
            data=page,
            first_id=page[0]["id"] if page else None,
            last_id=page[-1]["id"] if page else None,
            has_more=len(items) > limit,
        )
        return Response(body, headers=task_ids([task]))

    def _task(self, response_id: str) -> GenerationTask:
        """Its task. Raises NotFound for what is not the caller's to read."""
        principal = principal_of(self.request)
        return find(response_id, None if principal.is_staff else principal.owner)
