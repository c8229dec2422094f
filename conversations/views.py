"""The routes of conversations: validate, call one thing, respond."""

from typing import Any

from django.db.models import ProtectedError, QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from conversations.models import Conversation
from conversations.pagination import (
    MESSAGE_PARAMETERS,
    ConversationPagination,
    last_messages,
)
from conversations.serializers import (
    ConversationFieldsSerializer,
    ConversationSerializer,
    ConversationWithMessagesSerializer,
    MessagePageSerializer,
    MessageSerializer,
    NewMessageSerializer,
)
from monitoring.api import query_parameters
from monitoring.api.errors import Conflict
from monitoring.api.owners import OwnerFilter
from monitoring.api.principal import Scope, owner_of, principal_of
from monitoring.api.query_parameters import StrictViewSet

_INCLUDE_MESSAGES = OpenApiParameter("include_messages", bool)


class ConversationViewSet(
    StrictViewSet, mixins.ListModelMixin, viewsets.GenericViewSet[Conversation]
):
    """Dialogues with memory: tasks read one as context, and add their turn to it."""

    scopes = (Scope.TASKS,)
    queryset = Conversation.objects.none()
    serializer_class = ConversationSerializer
    pagination_class = ConversationPagination
    filter_backends = [OwnerFilter]
    lookup_value_regex = "conv_[0-9a-f]{32}"
    known_parameters = {
        "list": ("owner", "limit", "cursor", "offset"),
        "retrieve": ("include_messages",),
        "messages": ("limit", "before"),
    }

    def get_queryset(self) -> QuerySet[Conversation]:
        principal, rows = principal_of(self.request), Conversation.objects.all()
        visible = rows if principal.is_staff else rows.owned_by(principal.owner)
        return visible.counted()

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        """The form of the browsable API is that of what is sent."""
        if self.action in ("create", "partial_update"):
            return ConversationFieldsSerializer
        return NewMessageSerializer if self.action == "messages" else ConversationSerializer

    def get_object(self) -> Conversation:
        conversation = self.get_queryset().filter(pk=self.kwargs["pk"]).first()
        if conversation is None:
            raise NotFound(f"There is no conversation {self.kwargs['pk']}.")
        return conversation

    @extend_schema(request=ConversationFieldsSerializer, responses={201: ConversationSerializer})
    def create(self, request: Request) -> Response:
        """Begin a conversation."""
        fields = ConversationFieldsSerializer().run_validation(request.data)
        conversation = Conversation.objects.create(owner=owner_of(self.request), **fields)
        return Response(ConversationSerializer(conversation).data, status=201)

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Own conversations, newest first; staff that has signed in sees those of all owners."""
        return super().list(request, *args, **kwargs)

    @extend_schema(parameters=[_INCLUDE_MESSAGES], responses=ConversationWithMessagesSerializer)
    def retrieve(self, request: Request, pk: str) -> Response:
        """One conversation; with `?include_messages=true` its last 1,000 messages."""
        has_messages = query_parameters.boolean(request, "include_messages")
        shape = ConversationWithMessagesSerializer if has_messages else ConversationSerializer
        context = self.get_serializer_context()
        return Response(shape(self.get_object(), context=context).data)

    @extend_schema(request=ConversationFieldsSerializer, responses=ConversationSerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change model, system prompt or metadata; tasks that start from now on see it."""
        fields = ConversationFieldsSerializer().run_validation(request.data)
        conversation = self.get_object()
        conversation.change(**fields)
        return Response(ConversationSerializer(conversation).data)

    def destroy(self, request: Request, pk: str) -> Response:
        """Delete a conversation with its messages."""
        try:
            self.get_object().remove()
        except ProtectedError as error:
            message = "It has tasks that have not ended: wait for them, or cancel them first."
            raise Conflict(message) from error
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        methods=["GET"],
        operation_id="conversations_messages_list",
        parameters=MESSAGE_PARAMETERS,
        responses=MessagePageSerializer,
    )
    @extend_schema(
        methods=["POST"], request=NewMessageSerializer, responses={201: MessageSerializer}
    )
    @extend_schema(methods=["DELETE"], request=None, responses={204: None})
    @action(detail=True, methods=["get", "post", "delete"], pagination_class=None)
    def messages(self, request: Request, pk: str) -> Response:
        """The last messages, oldest first; add one at the end; or forget all of them."""
        conversation = self.get_object()
        if request.method == "GET":
            return last_messages(request, conversation.messages.all())
        if request.method == "DELETE":
            conversation.clear()
            return Response(status=status.HTTP_204_NO_CONTENT)
        fields = NewMessageSerializer().run_validation(request.data)
        if not isinstance(fields["content"], str):
            raise ValidationError(
                {"content": ["Conversations keep no images: send them in a task."]}
            )
        return Response(MessageSerializer(conversation.append(fields)).data, status=201)
