"""The routes whose requests a batch may have: what a body asks for, and the body of its answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rest_framework.exceptions import ValidationError

from inference.models import GenerationTask
from inference.openai.completions.chat_request import chat_request
from inference.openai.completions.chat_response import chat_completion
from inference.openai.completions.text import text_completion, text_request
from inference.openai.fields import CompletionRequest
from inference.openai.responses.body import response_object
from inference.openai.responses.request import response_request


@dataclass(frozen=True, slots=True)
class TaskEndpoint:
    """`parse` raises ValidationError; `answer` is of the tasks and `num_choices` of a request."""

    parse: Callable[[Any], CompletionRequest]
    answer: Callable[[Sequence[GenerationTask], int], Any]

    def request(self, body: Any) -> CompletionRequest:
        """What a body asks for. Raises ValidationError."""
        found = self.parse(body)
        if found.is_streamed:
            raise ValidationError({"stream": ["A batch has no streams: leave it out."]})
        return found


def _response_request(body: Any) -> CompletionRequest:
    if isinstance(body, dict) and body.get("previous_response_id") is not None:
        message = "A batch has no history: give the earlier messages as input."
        raise ValidationError({"previous_response_id": [message]})
    fields = response_request(body, owner="")
    return CompletionRequest([fields], 1, fields["stream"], has_usage_chunk=False)


EMBEDDINGS = "/v1/embeddings"
TASK_ENDPOINTS = {
    "/v1/chat/completions": TaskEndpoint(chat_request, chat_completion),
    "/v1/completions": TaskEndpoint(text_request, text_completion),
    "/v1/responses": TaskEndpoint(_response_request, lambda tasks, _: response_object(tasks[0])),
}
ENDPOINTS = (*TASK_ENDPOINTS, EMBEDDINGS)
