"""Pages of conversations, and of messages from the end of a dialogue backwards."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from conversations.models import Message
from conversations.serializers import MessageSerializer
from monitoring.api import query_parameters
from monitoring.api.pagination import AliasedPagination

MESSAGE_PARAMETERS = [
    query_parameters.LIMIT,
    OpenApiParameter("before", str, description="A message_id: only those before it."),
]


class ConversationPagination(AliasedPagination):
    alias = "conversations"


def last_messages(request: Request, messages: QuerySet[Message]) -> Response:
    """The last messages, oldest first; `previous` leads to those before them."""
    limit = query_parameters.limit(request)
    older = messages.order_by("-id")
    if message_id := request.query_params.get("before"):
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
