"""POST /v1/chat/completions and /v1/completions."""

from collections.abc import Callable, Sequence
from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request

from inference.api.task_stream import CONTENT_TYPE
from inference.models import GenerationTask
from inference.openai.answers import AnswerAtEnd
from inference.openai.completions.chat_request import ChatCompletionRequestSerializer, chat_request
from inference.openai.completions.chat_response import ChatCompletion, chat_completion
from inference.openai.completions.chat_stream import ChatChunkWriter
from inference.openai.completions.chunks import ChunkWriter, chunk_stream
from inference.openai.completions.text import (
    CompletionRequestSerializer,
    TextChunkWriter,
    TextCompletion,
    text_completion,
    text_request,
)
from inference.openai.fields import CompletionRequest
from inference.openai.tasks import HEADERS, submitted
from inference.openai.viewset import OpenAIViewSet


class ChatCompletionViewSet(OpenAIViewSet):
    """Chat completions."""

    @extend_schema(
        parameters=HEADERS,
        request=ChatCompletionRequestSerializer,
        responses={200: ChatCompletion, (200, CONTENT_TYPE): OpenApiTypes.STR},
    )
    def create(self, request: Request) -> HttpResponseBase:
        """Answer a chat. When the client goes away, its tasks are cancelled."""
        return _answer(request, chat_request(request.data), ChatChunkWriter, chat_completion)


class CompletionViewSet(OpenAIViewSet):
    """Completions of prompts."""

    @extend_schema(
        parameters=HEADERS,
        request=CompletionRequestSerializer,
        responses={200: TextCompletion, (200, CONTENT_TYPE): OpenApiTypes.STR},
    )
    def create(self, request: Request) -> HttpResponseBase:
        """Go on with a prompt, by local models as it is, without their chat template."""
        return _answer(request, text_request(request.data), TextChunkWriter, text_completion)


def _answer(
    request: Request,
    asked: CompletionRequest,
    writer: type[ChunkWriter],
    completion: Callable[[Sequence[GenerationTask], int], Any],
) -> HttpResponseBase:
    """A stream of chunks, or the completion of all tasks when they have ended."""
    tasks = submitted(request, asked.submissions)
    if asked.is_streamed:
        return chunk_stream(tasks, asked, writer)
    return AnswerAtEnd(tasks, lambda ended: completion(ended, asked.num_choices))
