"""What the routes of /v1 have in common."""

from rest_framework.response import Response

from inference.api.submission import UnknownModelError
from inference.api.task_stream import AnyAccept
from inference.openai.errors import ModelNotFound
from monitoring.api.principal import Scope
from monitoring.api.query_parameters import StrictViewSet


class OpenAIViewSet(StrictViewSet):
    """A model that is not there is 404; who accepts nothing but events gets errors as JSON."""

    scopes = (Scope.TASKS,)
    content_negotiation_class = AnyAccept

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, UnknownModelError):
            exc = ModelNotFound(exc.message)
        return super().handle_exception(exc)
