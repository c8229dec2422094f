"""The bodies of the routes of conversations."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from conversations.models import Conversation, Message
from monitoring.api import query_parameters
from monitoring.api.metadata import MetadataField
from monitoring.api.owners import OwnerField
from monitoring.api.strict_serializer import StrictSerializer

MAX_CONTENT_CHARS = 5_000_000
MAX_PARTS = 100
# Some providers put what they have thought into the ids of their calls.
MAX_CALL_ID = 16_384

_TEXT = serializers.CharField(trim_whitespace=False, allow_blank=True, max_length=MAX_CONTENT_CHARS)


class ImageUrlSerializer(StrictSerializer):
    url = serializers.CharField()
    detail = serializers.ChoiceField(choices=["auto", "low", "high"], required=False)


class ContentPartSerializer(StrictSerializer):
    """A part of a message, in OpenAI's shape."""

    type = serializers.ChoiceField(choices=["text", "image_url"])
    text = serializers.CharField(required=False, trim_whitespace=False, allow_blank=True)
    image_url = ImageUrlSerializer(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs.keys() != {"type", attrs["type"]}:
            raise ValidationError({attrs["type"]: ["A part has its type, and what that names."]})
        return attrs


@extend_schema_field(
    {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
)
class ContentField(serializers.Field[Any, Any, Any, Any]):
    """A text, or parts; those of a text alone are joined, so that a list has an image in it."""

    def to_internal_value(self, data: Any) -> str | list[dict[str, Any]]:
        if not isinstance(data, list):
            return str(_TEXT.run_validation(data))
        if not 1 <= len(data) <= MAX_PARTS:
            raise ValidationError(f"Give a text, or 1 to {MAX_PARTS} parts.")
        parts: list[dict[str, Any]] = ContentPartSerializer(many=True).run_validation(data)
        text = "".join(part.get("text", "") for part in parts)
        _TEXT.run_validation(text)
        return text if all(part["type"] == "text" for part in parts) else parts

    def to_representation(self, value: Any) -> Any:
        return value


class ToolFunctionSerializer(StrictSerializer):
    # As a model has written it, so that any answer can be sent back.
    name = serializers.CharField(trim_whitespace=False, allow_blank=True, max_length=MAX_CALL_ID)
    arguments = serializers.CharField(
        trim_whitespace=False, allow_blank=True, max_length=MAX_CONTENT_CHARS
    )


class ToolCallSerializer(StrictSerializer):
    """A call of a tool, in OpenAI's shape."""

    id = serializers.CharField(max_length=MAX_CALL_ID)
    type = serializers.ChoiceField(choices=["function"], default="function")
    function = ToolFunctionSerializer()


class NewMessageSerializer(StrictSerializer):
    """A message as clients write it, here and in tasks."""

    role = serializers.ChoiceField(choices=Message.Role.choices)
    content = ContentField(required=False, allow_null=True)
    tool_calls = ToolCallSerializer(many=True, required=False, allow_null=True)
    tool_call_id = serializers.CharField(required=False, allow_null=True, max_length=MAX_CALL_ID)
    reasoning_content = serializers.CharField(
        required=False,
        allow_null=True,
        allow_blank=True,
        help_text="Taken from what an assistant has answered, and left out: no model reads it.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        role, calls, call_id = attrs["role"], attrs.get("tool_calls"), attrs.get("tool_call_id")
        content = attrs.get("content") or ""
        if calls and role != Message.Role.ASSISTANT:
            raise ValidationError({"tool_calls": ["Only an assistant calls tools."]})
        if (role == Message.Role.TOOL) != bool(call_id):
            message = "A message of a tool has it, and no other: the id of the call it answers."
            raise ValidationError({"tool_call_id": [message]})
        if not isinstance(content, str) and role != Message.Role.USER:
            raise ValidationError({"content": ["Only a user sends images."]})
        if not (content or calls or role == Message.Role.TOOL):
            raise ValidationError({"content": ["Give a text, or parts."]})
        optional = {"tool_calls": calls, "tool_call_id": call_id}
        given = {name: value for name, value in optional.items() if value}
        return {"role": role, "content": content, **given}


class MessageSerializer(serializers.ModelSerializer[Message]):
    tool_call_id = serializers.SerializerMethodField()
    tool_calls = ToolCallSerializer(many=True, allow_null=True)

    class Meta:
        model = Message
        fields = ("message_id", "role", "content", "tool_calls", "tool_call_id", "created_at")
        read_only_fields = fields

    def get_tool_call_id(self, message: Message) -> str | None:
        return message.tool_call_id or None


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
