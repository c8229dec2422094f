from rest_framework.routers import DefaultRouter

from inference.embeddings.views import EmbeddingViewSet
from inference.model_views import RegisteredModelViewSet
from inference.views import TaskViewSet

router = DefaultRouter()
router.trailing_slash = "/?"
router.include_format_suffixes = False
router.register("tasks", TaskViewSet, basename="task")
router.register("embeddings", EmbeddingViewSet, basename="embedding")
router.register("models", RegisteredModelViewSet, basename="model")

urlpatterns = router.urls
