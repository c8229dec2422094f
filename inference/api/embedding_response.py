"""The deferred response of a request for embeddings."""

import redis
from django.conf import settings
from django.http import HttpResponse
from rest_framework.exceptions import APIException, ValidationError

from inference.api.deferred_response import LongPoll
from inference.embeddings import request_queue
from inference.embeddings.messages import EmbeddingRequest
from inference.embeddings.request_queue import TooManyRequestsError
from monitoring.api.errors import QueueFull, RedisUnavailable


class EmbeddingsUnavailable(APIException):
    """The worker did not answer in time, or could not answer."""

    status_code = 503
    default_code = "unavailable"
    wait = 5


class EmbeddingResponse(LongPoll):
    """Hands a request to the workers, and answers with what one of them computes."""

    def __init__(self, request: EmbeddingRequest, seconds: float | None = None) -> None:
        """`seconds` to wait at most; None: EMBEDDING_TIMEOUT_SECONDS."""
        self._request = request
        self._answer_key = request_queue.new_key()
        self._entry_id: str | None = None
        self._seconds = settings.EMBEDDING_TIMEOUT_SECONDS if seconds is None else seconds
        super().__init__([self._answer_key], self._seconds, self._find_answer)

    def _find_answer(self, is_last: bool) -> HttpResponse | None:
        try:
            if self._entry_id is None:
                self._post()
                return None
            if is_last:
                request_queue.forget(self._answer_key, self._entry_id)
                raise EmbeddingsUnavailable(
                    "The embeddings worker did not answer within "
                    f"{self._seconds:g} s: try again, with fewer texts at a "
                    "time; /api/v1/monitor/health tells whether it runs."
                )
        except redis.RedisError as error:
            raise RedisUnavailable from error
        try:
            answer = request_queue.take_answer(self._answer_key)
            if answer is None:
                # A lost request is sent again, and a lost worker's successor is notified.
                if request_queue.has(self._entry_id):
                    request_queue.notify()
                else:
                    self._post()
                return None
        except redis.RedisError:
            return None  # Redis may be back before the time-out
        if answer.field:
            raise ValidationError({answer.field: [answer.error]})
        if answer.error:
            raise EmbeddingsUnavailable(answer.error)
        return HttpResponse(answer.body, content_type="application/json")

    def _post(self) -> None:
        try:
            self._entry_id = request_queue.post(self._answer_key, self._request)
        except TooManyRequestsError as error:
            message = "Too many requests for embeddings wait: try again in a few seconds."
            raise QueueFull(message) from error
