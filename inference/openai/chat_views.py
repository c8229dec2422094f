"""POST /v1/chat/completions."""

from django.http import HttpResponseBase
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request

from inference.openai.answers import AnswerAtEnd
from inference.openai.chat_request import ChatCompletionRequestSerializer, chat_request
from inference.openai.chat_response import ChatCompletion, chat_completion
from inference.openai.chat_stream import chat_stream
from inference.openai.tasks import submitted
from inference.openai.viewset import OpenAIViewSet


class ChatCompletionViewSet(OpenAIViewSet):
    """Chat completions."""

    @extend_schema(request=ChatCompletionRequestSerializer, responses={200: ChatCompletion})
    def create(self, request: Request) -> HttpResponseBase:
        """Answer a chat. When the client goes away, its task is cancelled."""
        chat = chat_request(request.data)
        tasks = submitted(request, chat.submissions)
        if chat.is_streamed:
            return chat_stream(tasks, has_usage_chunk=chat.has_usage_chunk)
        return AnswerAtEnd(tasks, chat_completion)
