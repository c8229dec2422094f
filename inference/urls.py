from django.urls import re_path
from rest_framework.routers import DefaultRouter

from inference.api import monitor_views
from inference.api.embedding_views import EmbeddingViewSet
from inference.api.model_views import RegisteredModelViewSet
from inference.api.task_views import TaskViewSet

router = DefaultRouter()
router.trailing_slash = "/?"
router.include_format_suffixes = False
router.register("tasks", TaskViewSet, basename="task")
router.register("embeddings", EmbeddingViewSet, basename="embedding")
router.register("models", RegisteredModelViewSet, basename="model")

urlpatterns = [
    *router.urls,
    re_path(r"^monitor/queue/?$", monitor_views.queue, name="monitor-queue"),
]
