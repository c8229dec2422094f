"""Lines that ask for embeddings: a few at a time go to the embeddings worker, as requests do."""

import json
import time

import redis
from django.conf import settings
from rest_framework.exceptions import ValidationError

from inference.api.embedding_response import EmbeddingsUnavailable
from inference.embeddings import request_queue
from inference.embeddings.messages import Answer
from inference.embeddings.request_queue import TooManyRequestsError
from inference.models import Batch
from inference.openai.batches import output
from inference.openai.batches.lines import LineRequest, next_lines, parse
from inference.openai.batches.output import LineAnswer
from inference.openai.embedding_views import embedding_request
from monitoring.api.errors import LimitReached
from monitoring.api.principal import Principal

# Requests of others wait for as many.
_AT_ONCE = 8
_LOOK_SECONDS = 0.02


def answer_lines(batch: Batch, principal: Principal) -> bool:
    """Have the next lines answered, and write the answers. False when the worker gives none.

    A worker that is killed meanwhile has stored nothing of them, so that they are asked again.
    """
    lines = next_lines(batch, _AT_ONCE)
    if not lines:
        return True
    requests = [parse(line, batch) for line in lines]
    try:
        sent = [_send(request, principal) for request in requests]
        give_up_at = time.monotonic() + settings.EMBEDDING_TIMEOUT_SECONDS
        answers = [_wait(key, give_up_at) if isinstance(key, str) else key for key in sent]
    except (redis.RedisError, TooManyRequestsError, TimeoutError, LimitReached):
        return False
    written = [
        LineAnswer.of(batch, line.number, request.custom_id, **answer)
        for line, request, answer in zip(lines, requests, answers, strict=True)
    ]
    return output.store(batch, written, input_offset=lines[-1].end, input_line=lines[-1].number)


def _send(request: LineRequest, principal: Principal) -> str | dict[str, object]:
    """The key of the answer that is to come; the answer itself if the model is gone meanwhile."""
    try:
        checked = embedding_request(request.body, principal)
    except ValidationError as error:
        return output.refusal(error)
    key = request_queue.new_key()
    request_queue.post(key, checked)
    return key


def _wait(key: str, give_up_at: float) -> dict[str, object]:
    """The fields of the answer. Raises TimeoutError."""
    while (answer := request_queue.take_answer(key)) is None:
        if time.monotonic() > give_up_at:
            raise TimeoutError
        time.sleep(_LOOK_SECONDS)
    return _fields(answer)


def _fields(answer: Answer) -> dict[str, object]:
    if answer.field:
        return output.refusal(ValidationError({answer.field: [answer.error]}))
    if answer.error:
        return output.refusal(EmbeddingsUnavailable(answer.error))
    return output.success(json.loads(answer.body))
