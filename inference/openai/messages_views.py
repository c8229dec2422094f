"""POST /v1/messages."""

from django.http import HttpResponseBase
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request

from inference.openai.answers import AnswerAtEnd
from inference.openai.messages_request import MessagesRequestSerializer, messages_request
from inference.openai.messages_response import AnthropicMessage, is_answer, message, request_id
from inference.openai.messages_stream import message_stream
from inference.openai.tasks import submitted
from inference.openai.viewset import OpenAIViewSet


class MessageViewSet(OpenAIViewSet):
    """Anthropic's messages."""

    # Its SDK adds `?beta=true` to what is asked for by its beta client.
    known_parameters = {"create": ["beta"]}

    @extend_schema(
        summary="A message",
        request=MessagesRequestSerializer,
        responses={200: AnthropicMessage},
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
