"""Turns and their blocks in Anthropic's Messages, and what they are in a task."""

import json
from collections.abc import Iterable, Mapping
from itertools import chain, groupby
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from conversations.models import ChatMessage, ToolCall
from conversations.serializers import MAX_CALL_ID, MAX_CONTENT_CHARS
from monitoring.api.strict_serializer import StrictSerializer

ROLES = ["user", "assistant", "system"]

_MAX_BLOCKS = 1000
_IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")

Block = dict[str, Any]


class BlockSerializer(StrictSerializer):
    """What blocks of all types may have."""

    null_means_default = True
    type = serializers.CharField()
    cache_control = serializers.DictField(
        required=False, help_text="Not used: what prompts have in common is reused anyway."
    )


class TextBlockSerializer(BlockSerializer):
    text = serializers.CharField(
        trim_whitespace=False, allow_blank=True, max_length=MAX_CONTENT_CHARS
    )
    citations = serializers.ListField(required=False, help_text="Not used.")


class ImageSourceSerializer(StrictSerializer):
    type = serializers.ChoiceField(choices=["base64", "url"])
    media_type = serializers.ChoiceField(choices=_IMAGE_TYPES, required=False)
    data = serializers.CharField(required=False)  # type: ignore[assignment]
    url = serializers.CharField(required=False)

    def validate(self, attrs: Block) -> Block:
        needed = {"url"} if attrs["type"] == "url" else {"media_type", "data"}
        if attrs.keys() != {"type", *needed}:
            raise ValidationError(
                {"type": [f"With this type, give {' and '.join(sorted(needed))}."]}
            )
        return attrs


class ImageBlockSerializer(BlockSerializer):
    source = ImageSourceSerializer()  # type: ignore[assignment]


class ToolUseBlockSerializer(BlockSerializer):
    id = serializers.CharField(max_length=MAX_CALL_ID)
    name = serializers.CharField(trim_whitespace=False, max_length=MAX_CALL_ID)
    input = serializers.DictField()
    caller = serializers.DictField(required=False, help_text="Not used.")


class ThinkingBlockSerializer(BlockSerializer):
    thinking = serializers.CharField(allow_blank=True, trim_whitespace=False)
    signature = serializers.CharField(required=False, allow_blank=True)


class RedactedThinkingBlockSerializer(BlockSerializer):
    data = serializers.CharField(allow_blank=True)  # type: ignore[assignment]


@extend_schema_field(
    {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
)
class BlocksField(serializers.Field[Any, Any, Any, Any]):
    """A text, which is one block, or blocks of the given types."""

    def __init__(self, kinds: Mapping[str, type[StrictSerializer]], **options: Any) -> None:
        super().__init__(**options)
        self._kinds = {kind: made() for kind, made in kinds.items()}

    def to_internal_value(self, data: Any) -> list[Block]:
        if isinstance(data, str):
            data = [{"type": "text", "text": data}]
        if not isinstance(data, list) or len(data) > _MAX_BLOCKS:
            raise ValidationError(f"Give a text, or a list of up to {_MAX_BLOCKS} blocks.")
        return [self._block(index, block) for index, block in enumerate(data)]

    def _block(self, index: int, block: Any) -> Block:
        kind = block.get("type") if isinstance(block, dict) else None
        known = self._kinds.get(kind) if isinstance(kind, str) else None
        details: Any = {"type": [f"Give one of the types {', '.join(self._kinds)}."]}
        if known is not None:
            try:
                valid: Block = known.run_validation(block)
            except ValidationError as error:
                details = error.detail
            else:
                return valid
        raise ValidationError({str(index): details})

    def to_representation(self, value: Any) -> Any:
        return value


TEXT = {"text": TextBlockSerializer}


class ToolResultBlockSerializer(BlockSerializer):
    tool_use_id = serializers.CharField(max_length=MAX_CALL_ID)
    content = BlocksField(TEXT, required=False)
    is_error = serializers.BooleanField(required=False)


_OF_ASSISTANTS = {
    "thinking": ThinkingBlockSerializer,
    "redacted_thinking": RedactedThinkingBlockSerializer,
    "tool_use": ToolUseBlockSerializer,
}
_OF_USERS = {"image": ImageBlockSerializer, "tool_result": ToolResultBlockSerializer}


class InputMessageSerializer(StrictSerializer):
    """A turn; what an assistant has thought is taken, and left out: no model reads it."""

    role = serializers.ChoiceField(choices=ROLES)
    content = BlocksField({**TEXT, **_OF_USERS, **_OF_ASSISTANTS})

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        own = {"user": _OF_USERS, "assistant": _OF_ASSISTANTS}.get(attrs["role"], {})
        for index, block in enumerate(attrs["content"]):
            if block["type"] not in {**TEXT, **own}:
                reason = f"The role {attrs['role']} has no {block['type']}."
                details: Any = {"content": {str(index): {"type": [reason]}}}
                raise ValidationError(details)
        if attrs["role"] == "user" and not any(map(_has_content, attrs["content"])):
            raise ValidationError({"content": ["Give a text, or blocks."]})
        return attrs


def _has_content(block: Block) -> bool:
    return block["type"] != "text" or bool(block["text"])


def check_turns(messages: list[dict[str, Any]]) -> None:
    """Raises ValidationError where a result answers no call, or the last turn asks for none."""
    called: set[str] = set()
    for number, message in enumerate(messages):
        for index, block in enumerate(message["content"]):
            if block["type"] == "tool_use":
                called.add(block["id"])
            elif block["type"] == "tool_result" and block["tool_use_id"] not in called:
                reason = "No tool_use before it has this id: send the assistant's turn with it."
                where: Any = {str(index): {"tool_use_id": [reason]}}
                raise ValidationError({"messages": {str(number): {"content": where}}})
    if messages[-1]["role"] == "assistant":
        reason = "The last one has to be a user's: no model goes on with an assistant's turn."
        raise ValidationError({"messages": [reason]})


def turns(system: list[Block], messages: list[dict[str, Any]]) -> Iterable[ChatMessage]:
    """As tasks take them: turns of one role that follow one another are one."""
    if text := _text(system):
        yield ChatMessage(role="system", content=text)
    for role, group in groupby(messages, key=lambda message: str(message["role"])):
        blocks = list(chain.from_iterable(message["content"] for message in group))
        for block in blocks:
            if block["type"] == "tool_result":
                yield _tool_result(block)
        content: Any = _text(blocks)
        if any(block["type"] == "image" for block in blocks):
            content = [part for block in blocks if (part := _part(block))]
        turn = ChatMessage(role=role, content=content)
        if calls := [_tool_call(block) for block in blocks if block["type"] == "tool_use"]:
            turn["tool_calls"] = calls
        if content or calls:
            yield turn


def _text(blocks: list[Block]) -> str:
    """Of all blocks that are text, with a blank line in between."""
    texts = (block["text"] for block in blocks if block["type"] == "text")
    return "\n\n".join(filter(None, texts))


def _part(block: Block) -> dict[str, Any] | None:
    """A text or image as a part, in OpenAI's shape."""
    if block["type"] == "image":
        source = block["source"]
        data = f"data:{source.get('media_type')};base64,{source.get('data')}"
        return {"type": "image_url", "image_url": {"url": source.get("url", data)}}
    is_text = block["type"] == "text" and block["text"]
    return {"type": "text", "text": block["text"]} if is_text else None


def _tool_result(block: Block) -> ChatMessage:
    text = _text(block.get("content", []))
    if block.get("is_error"):
        text = f"Error: {text}"
    return ChatMessage(role="tool", content=text, tool_call_id=block["tool_use_id"])


def _tool_call(block: Block) -> ToolCall:
    arguments = json.dumps(block["input"])
    function: Any = {"name": block["name"], "arguments": arguments}
    return ToolCall(id=block["id"], type="function", function=function)
