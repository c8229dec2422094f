"""POST /v1/messages and /v1/messages/count_tokens."""

from typing import TypedDict

from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request

from inference.api.embedding_response import EmbeddingResponse
from inference.api.submission import build_task
from inference.api.task_stream import CONTENT_TYPE
from inference.embeddings.messages import EmbeddingRequest, Shape
from inference.openai.answers import AnswerAtEnd
from inference.openai.messages.request import (
    MessagesRequestSerializer,
    TokenCountRequestSerializer,
    messages_request,
)
from inference.openai.messages.response import AnthropicMessage, is_answer, message, request_id
from inference.openai.messages.stream import message_stream
from inference.openai.tasks import HEADERS, submitted
from inference.openai.viewset import OpenAIViewSet
from monitoring.api.principal import principal_of


class TokenCount(TypedDict):
    """Tokens of the prompt that a message would have."""

    input_tokens: int


class MessageViewSet(OpenAIViewSet):
    """Anthropic's messages."""

    # Its SDK adds `?beta=true` to what is asked for by its beta client.
    known_parameters = {"create": ["beta"], "count_tokens": ["beta"]}

    @extend_schema(
        parameters=HEADERS,
        request=MessagesRequestSerializer,
        responses={200: AnthropicMessage, (200, CONTENT_TYPE): OpenApiTypes.STR},
    )
    def create(self, request: Request) -> HttpResponseBase:
        """Answer a dialogue. When the client goes away, its task is cancelled."""
        asked = messages_request(request.data)
        shows_thinking = asked.shows_thinking
        [task] = submitted(request, [asked.submission])
        response: HttpResponseBase
        if asked.is_streamed:
            response = message_stream(task, shows_thinking=shows_thinking)
        else:
            response = AnswerAtEnd(
                [task], lambda ended: message(ended[0], shows_thinking=shows_thinking), is_answer
            )
        response["request-id"] = request_id(task)
        return response

    @extend_schema(
        request=TokenCountRequestSerializer,
        responses={200: TokenCount},
    )
    @action(detail=False, methods=["post"])
    def count_tokens(self, request: Request) -> EmbeddingResponse:
        """Exactly for local models, about for others; a worker counts, and nothing is run."""
        asked = messages_request(request.data, TokenCountRequestSerializer)
        task = build_task(principal_of(request).owner, asked.submission, None)
        return EmbeddingResponse(
            EmbeddingRequest(task.model_name, [], Shape.COUNT, prompt=task.request)
        )
