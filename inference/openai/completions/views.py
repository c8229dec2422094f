"""POST /v1/chat/completions and /v1/completions."""

from functools import partial

from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request

from inference.api.task_stream import CONTENT_TYPE
from inference.openai import examples
from inference.openai.answers import AnswerAtEnd
from inference.openai.completions.chat_request import ChatCompletionRequestSerializer, chat_request
from inference.openai.completions.chat_response import ChatCompletion, chat_completion, head
from inference.openai.completions.chat_stream import ChatChunkWriter
from inference.openai.completions.chunks import chunk_stream
from inference.openai.completions.text import (
    CompletionRequestSerializer,
    TextChunkWriter,
    TextCompletion,
    text_completion,
    text_request,
)
from inference.openai.tasks import HEADERS, submitted
from inference.openai.viewset import OpenAIViewSet


class ChatCompletionViewSet(OpenAIViewSet):
    """Chat completions."""

    @extend_schema(
        summary="A chat completion",
        parameters=HEADERS,
        request=ChatCompletionRequestSerializer,
        responses={200: ChatCompletion, (200, CONTENT_TYPE): OpenApiTypes.STR},
        examples=examples.of(examples.CHAT_REQUEST, examples.CHAT),
    )
    def create(self, request: Request) -> HttpResponseBase:
        """Answer a chat. When the client goes away, its tasks are cancelled."""
        chat = chat_request(request.data)
        tasks = submitted(request, chat.submissions)
        if chat.is_streamed:
            return chunk_stream(
                tasks,
                ChatChunkWriter,
                head(tasks, "chatcmpl", "chat.completion.chunk"),
                chat.num_choices,
                has_usage_chunk=chat.has_usage_chunk,
            )
        return AnswerAtEnd(tasks, chat_completion)


class CompletionViewSet(OpenAIViewSet):
    """Completions of prompts."""

    @extend_schema(
        summary="A completion of a prompt",
        parameters=HEADERS,
        request=CompletionRequestSerializer,
        responses={200: TextCompletion, (200, CONTENT_TYPE): OpenApiTypes.STR},
        examples=examples.of(examples.COMPLETION_REQUEST, examples.COMPLETION),
    )
    def create(self, request: Request) -> HttpResponseBase:
        """Go on with a prompt, by local models as it is, without their chat template."""
        text = text_request(request.data)
        tasks = submitted(request, text.submissions)
        if text.is_streamed:
            return chunk_stream(
                tasks,
                TextChunkWriter,
                head(tasks, "cmpl", "text_completion"),
                text.num_choices,
                has_usage_chunk=text.has_usage_chunk,
            )
        return AnswerAtEnd(tasks, partial(text_completion, num_choices=text.num_choices))
