"""From a request for embeddings to a worker's answer, as the web process waits for it."""

import redis
from django.conf import settings
from django.http import HttpResponse
from rest_framework.exceptions import APIException, ValidationError

from inference.embeddings import request_queue
from inference.embeddings.messages import EmbeddingRequest
from inference.embeddings.request_queue import MailboxFullError
from monitoring.api.errors import QueueFull, RedisUnavailable


class EmbeddingsUnavailable(APIException):
    """The worker did not answer in time, or could not answer."""

    status_code = 503
    default_code = "unavailable"
    wait = 5


class EmbeddingErrand:
    """Implements `Errand`."""

    def __init__(self, request: EmbeddingRequest) -> None:
        self.key = request_queue.new_key()
        self.seconds = settings.EMBEDDING_TIMEOUT_SECONDS
        self._request = request
        self._entry_id = ""

    def start(self) -> None:
        try:
            self._post()
        except redis.RedisError as error:
            raise RedisUnavailable from error

    def collect(self) -> HttpResponse | None:
        """Asks again where Redis has lost the request, and rings where a worker may be lost."""
        try:
            answer = request_queue.collect(self.key)
            if answer is None:
                if request_queue.has(self._entry_id):
                    request_queue.ring()
                else:
                    self._post()
                return None
        except redis.RedisError:
            return None  # it may be back in time
        if answer.field:
            raise ValidationError({answer.field: [answer.error]})
        if answer.error:
            raise EmbeddingsUnavailable(answer.error)
        return HttpResponse(answer.body, content_type="application/json")

    def _post(self) -> None:
        try:
            self._entry_id = request_queue.post(self.key, self._request)
        except MailboxFullError as error:
            message = "Too many requests for embeddings wait: try again in a few seconds."
            raise QueueFull(message) from error

    def give_up(self) -> HttpResponse:
        try:
            request_queue.forget(self.key, self._entry_id)
        except redis.RedisError as error:
            raise RedisUnavailable from error
        raise EmbeddingsUnavailable(
            f"The embeddings worker did not answer within {self.seconds:g} s: try again, with "
            "fewer texts at a time; /api/v1/monitor/health tells whether it runs."
        )
