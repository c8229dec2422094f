"""The bodies of the routes of conversations."""

from typing import Any

from rest_framework import serializers

from conversations.models import Conversation, Message
from monitoring.api import query_parameters
from monitoring.api.metadata import MetadataField
from monitoring.api.owners import OwnerField
from monitoring.api.strict_serializer import StrictSerializer

MAX_CONTENT_CHARS = 5_000_000


class NewMessageSerializer(StrictSerializer):
    """A message as clients write it, here and in tasks."""

    role = serializers.ChoiceField(choices=Message.Role.choices)
    content = serializers.CharField(trim_whitespace=False, max_length=MAX_CONTENT_CHARS)


class MessageSerializer(serializers.ModelSerializer[Message]):
    class Meta:
        model = Message
        fields = ("message_id", "role", "content", "created_at")
        read_only_fields = fields


class LastMessagesSerializer(serializers.ListSerializer[Any]):
    """The last 1,000 of a dialogue, oldest first."""

    def to_representation(self, data: Any) -> Any:
        return super().to_representation(data.order_by("-id")[: query_parameters.MAX_LIMIT][::-1])


class MessagePageSerializer(serializers.Serializer[Any]):
    """Oldest first; `previous` leads to the messages before these, `results` is the same list."""

    messages = MessageSerializer(many=True)
    total = serializers.IntegerField()
    results = MessageSerializer(many=True)
    next = serializers.URLField(allow_null=True, help_text="Always null.")
    previous = serializers.URLField(allow_null=True)


class ConversationFieldsSerializer(StrictSerializer):
    """The fields of a conversation that clients set; null resets one."""

    model = serializers.CharField(
        source="model_name",
        required=False,
        allow_null=True,
        max_length=100,
        help_text="The model of its tasks, unless they name one.",
    )
    system_prompt = serializers.CharField(
        required=False,
        allow_null=True,
        allow_blank=True,
        trim_whitespace=False,
        max_length=MAX_CONTENT_CHARS,
        help_text="Goes first in every context; it is not a message.",
    )
    metadata = MetadataField(required=False, allow_null=True)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        empty = {"model_name": "", "system_prompt": "", "metadata": {}}
        return {name: empty[name] if value is None else value for name, value in attrs.items()}


class ConversationSerializer(serializers.ModelSerializer[Conversation]):
    conversation_id = serializers.CharField(source="id")
    owner = OwnerField()
    model = serializers.SerializerMethodField()
    system_prompt = serializers.SerializerMethodField()
    message_count = serializers.SerializerMethodField()

    class Meta:
        model = Conversation
        fields: tuple[str, ...] = (
            *("conversation_id", "owner", "model", "system_prompt", "metadata", "message_count"),
            *("created_at", "updated_at"),
        )
        read_only_fields = fields

    def get_model(self, conversation: Conversation) -> str | None:
        return conversation.model_name or None

    def get_system_prompt(self, conversation: Conversation) -> str | None:
        return conversation.system_prompt or None

    def get_message_count(self, conversation: Conversation) -> int:
        """Counted with the rows where they were read; a new conversation has none."""
        return int(getattr(conversation, "message_count", 0))


class ConversationWithMessagesSerializer(ConversationSerializer):
    """`messages` come with `?include_messages=true`."""

    messages = LastMessagesSerializer(child=MessageSerializer(), required=False)

    class Meta(ConversationSerializer.Meta):
        fields = (*ConversationSerializer.Meta.fields, "messages")
