from typing import Any

from django.urls import re_path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import APIRootView, DefaultRouter

from inference.api import monitor_views, webhook_views
from inference.api.embedding_views import EmbeddingViewSet
from inference.api.model_views import RegisteredModelViewSet
from inference.api.task_views import TaskViewSet
from monitoring.api import query_parameters
from monitoring.api.principal import ANY_SCOPE


class Root(APIRootView):
    """The collections of the API."""

    scopes = ANY_SCOPE

    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        query_parameters.refuse_unknown(request, ())
        return super().get(request, *args, **kwargs)


router = DefaultRouter()
router.APIRootView = Root
router.trailing_slash = "/?"
router.include_format_suffixes = False
router.register("tasks", TaskViewSet, basename="task")
router.register("embeddings", EmbeddingViewSet, basename="embedding")
router.register("models", RegisteredModelViewSet, basename="model")

urlpatterns = [
    *router.urls,
    re_path(r"^monitor/queue/?$", monitor_views.queue, name="monitor-queue"),
    re_path(r"^webhooks/secret/?$", webhook_views.webhook_secret, name="webhook-secret"),
]
