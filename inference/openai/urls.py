from rest_framework.routers import SimpleRouter

from inference.openai.batches.views import BatchViewSet
from inference.openai.completions.views import ChatCompletionViewSet, CompletionViewSet
from inference.openai.embedding_views import OpenAIEmbeddingViewSet
from inference.openai.file_views import FileViewSet
from inference.openai.messages.views import MessageViewSet
from inference.openai.model_views import OpenAIModelViewSet
from inference.openai.rerank_views import RerankViewSet
from inference.openai.responses.views import ResponseViewSet

router = SimpleRouter()
router.trailing_slash = "/?"
router.register("batches", BatchViewSet, basename="openai-batch")
router.register("chat/completions", ChatCompletionViewSet, basename="openai-chat-completion")
router.register("completions", CompletionViewSet, basename="openai-completion")
router.register("embeddings", OpenAIEmbeddingViewSet, basename="openai-embedding")
router.register("files", FileViewSet, basename="openai-file")
router.register("messages", MessageViewSet, basename="anthropic-message")
router.register("models", OpenAIModelViewSet, basename="openai-model")
router.register("responses", ResponseViewSet, basename="openai-response")
router.register("rerank", RerankViewSet, basename="rerank")

urlpatterns = router.urls
