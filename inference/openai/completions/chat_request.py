"""From the body of a chat completion to the fields of its tasks."""

from functools import cache
from typing import Any

from rest_framework import serializers

from conversations.serializers import NewMessageSerializer
from inference.openai.fields import (
    CompletionFieldsSerializer,
    CompletionRequest,
    completion_request,
)


class ChatCompletionRequestSerializer(CompletionFieldsSerializer):
    messages = NewMessageSerializer(
        many=True, allow_empty=False, help_text="The role `developer` is `system`."
    )
    max_completion_tokens = serializers.IntegerField(
        required=False, min_value=1, max_value=128_000, help_text="The newer name of max_tokens."
    )

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("messages"), list):
            given = [_message(each) for each in data["messages"]]
            # An answer may have been empty, or nothing but reasoning.
            data = data | {"messages": [each for each in given if each != {"role": "assistant"}]}
        return super().to_internal_value(data)


@cache
def _validator() -> ChatCompletionRequestSerializer:
    """One instance for all requests: validating does not change it, building it is slow."""
    return ChatCompletionRequestSerializer()


def chat_request(body: Any) -> CompletionRequest:
    """What a body asks for. Raises ValidationError naming the field."""
    return completion_request(_validator().run_validation(body), [{}])


def _message(message: Any) -> Any:
    """As tasks take it: without what is null or empty, as in the answers that come back.

    `developer` is `system`; no model reads the `name` of who speaks, or earlier reasoning.
    """
    if not isinstance(message, dict):
        return message
    given = {name: value for name, value in message.items() if value not in (None, [], "")}
    for name in ("name", "reasoning_content", "reasoning"):
        given.pop(name, None)
    return given | {"role": "system"} if given.get("role") == "developer" else given
