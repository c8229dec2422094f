from rest_framework.routers import SimpleRouter

from inference.openai.chat_views import ChatCompletionViewSet
from inference.openai.embedding_views import OpenAIEmbeddingViewSet
from inference.openai.model_views import OpenAIModelViewSet

router = SimpleRouter()
router.trailing_slash = "/?"
router.register("chat/completions", ChatCompletionViewSet, basename="openai-chat-completion")
router.register("embeddings", OpenAIEmbeddingViewSet, basename="openai-embedding")
router.register("models", OpenAIModelViewSet, basename="openai-model")

urlpatterns = router.urls
