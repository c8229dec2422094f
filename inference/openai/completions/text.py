"""Completions of prompts without messages, OpenAI's older form."""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypedDict

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from conversations.serializers import MAX_CONTENT_CHARS
from inference.models import GenerationTask
from inference.openai.completions.chat_response import (
    CompletionUsage,
    finish_reason_of,
    head,
    result_of,
    usage_of,
)
from inference.openai.completions.chunks import ChunkWriter
from inference.openai.fields import (
    OF_TASKS_ALONE,
    CompletionFieldsSerializer,
    CompletionRequest,
    completion_request,
)
from monitoring.streams.delta_stream import Delta

MAX_PROMPTS = 100
_OF_CHATS = {
    *("messages", "conversation_id", "tools", "tool_choice"),
    *("parallel_tool_calls", "logprobs", "top_logprobs"),
}
_TEXT = {"type": "string"}


@extend_schema_field({"oneOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": MAX_PROMPTS}]})
class PromptField(serializers.ListField):
    """One text, or several."""

    child = serializers.CharField(trim_whitespace=False, max_length=MAX_CONTENT_CHARS)

    def to_internal_value(self, data: Any) -> list[str]:
        texts = [data] if isinstance(data, str) else data
        if isinstance(texts, list) and not all(isinstance(text, str) for text in texts):
            raise ValidationError("Give texts: tokens are those of the client's own tokenizer.")
        return super().to_internal_value(texts)


class CompletionRequestSerializer(CompletionFieldsSerializer):
    left_out = OF_TASKS_ALONE - {"prompt"} | _OF_CHATS

    prompt = PromptField(  # type: ignore[assignment] # several, each a task of its own
        allow_empty=False, max_length=MAX_PROMPTS
    )
    echo = serializers.BooleanField(required=False, help_text="Only false.")
    best_of = serializers.IntegerField(required=False, min_value=1, max_value=1)
    suffix = serializers.CharField(required=False, allow_blank=True, help_text="Only empty.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        for name in ("echo", "suffix"):
            if attrs.pop(name, None):
                raise ValidationError({name: ["No model here does that: leave it out."]})
        return attrs


class TextChoice(TypedDict):
    text: str
    index: int
    logprobs: dict[str, Any] | None
    finish_reason: str


class TextCompletion(TypedDict):
    """The choices of the first prompt, then those of the next; `model` is the one that answered."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: CompletionUsage


@cache
def _validator() -> CompletionRequestSerializer:
    """One instance for all requests, since building one is slow."""
    return CompletionRequestSerializer()


def text_request(body: Any) -> CompletionRequest:
    """What a body asks for. Raises ValidationError naming the field."""
    fields = _validator().run_validation(body)
    prompts = [{"prompt": text, "is_raw": True} for text in fields["prompt"]]
    return completion_request(fields, prompts)


def text_completion(tasks: Sequence[GenerationTask], num_choices: int) -> TextCompletion:
    """Of tasks that have completed, `num_choices` for each prompt."""
    results = [result_of(task) for task in tasks]
    return TextCompletion(
        **head(tasks, "cmpl", "text_completion"),
        choices=[
            TextChoice(
                text=result["text"],
                index=index,
                logprobs=None,
                finish_reason=finish_reason_of(result),
            )
            for index, result in enumerate(results)
        ],
        usage=usage_of(tasks, num_choices),
    )


class TextChunkWriter(ChunkWriter):
    """Each chunk has a text, and the last one why it ends."""

    id_prefix, kind = "cmpl", "text_completion"

    def delta(self, delta: Delta) -> bytes:
        return self.chunk(text=delta.text)

    def last(self, finish_reason: str) -> bytes:
        return self.chunk(finish_reason, text="")
