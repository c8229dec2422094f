"""Pages of conversations by offset, and of messages from the end of a dialogue backwards."""

from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param
from rest_framework.views import APIView

from conversations.models import Message
from conversations.serializers import MessageSerializer
from monitoring.api import query_parameters
from monitoring.api.pagination import AliasedPagination

MESSAGE_PARAMETERS = [
    OpenApiParameter("limit", int, description="1 to 1000, 100 by default; the last ones."),
    OpenApiParameter("before", str, description="A message_id: only those before it."),
]
LIST_PARAMETERS = [
    OpenApiParameter("until", datetime, description="Without those made later; as in `next`."),
]


class ConversationPagination(AliasedPagination):
    """Newest first. Its links have the time of the newest, so that later ones shift no page."""

    alias = "conversations"
    _until: datetime | None = None

    def paginate_queryset(
        self, queryset: Any, request: Request, view: APIView | None = None
    ) -> list[Any] | None:
        if text := request.query_params.get("until"):
            try:
                self._until = query_parameters.moment(text)
            except ValueError as error:
                raise ValidationError({"until": [str(error)]}) from error
            queryset = queryset.filter(created_at__lte=self._until)
        page: list[Any] | None = super().paginate_queryset(queryset, request, view)
        if page and self.offset == 0:
            self._until = page[0].created_at
        return page

    def get_next_link(self) -> str | None:
        link = super().get_next_link()
        if link is None or self._until is None:
            return link
        return replace_query_param(link, "until", self._until.isoformat())


def last_messages(request: Request, messages: QuerySet[Message]) -> Response:
    """The last messages, oldest first; `previous` leads to those before them."""
    limit = query_parameters.limit(request)
    older = messages.order_by("-id")
    if message_id := request.query_params.get("before"):
        found = None
        if "\0" not in message_id:  # PostgreSQL refuses to look for one
            found = messages.filter(message_id=message_id).values_list("id", flat=True).first()
        if found is None:
            raise ValidationError({"before": ["There is no such message in this conversation."]})
        older = older.filter(id__lt=found)
    page = list(older[: limit + 1])
    has_more = len(page) > limit
    shown: Any = MessageSerializer(page[:limit][::-1], many=True).data
    previous = None
    if has_more:
        url = request.build_absolute_uri()
        previous = replace_query_param(url, "before", page[limit - 1].message_id)
    body = {"messages": shown, "total": messages.count(), "results": shown}
    return Response({**body, "next": None, "previous": previous})
