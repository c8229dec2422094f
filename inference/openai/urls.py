from rest_framework.routers import SimpleRouter

from inference.openai.chat_views import ChatCompletionViewSet

router = SimpleRouter()
router.trailing_slash = "/?"
router.register("chat/completions", ChatCompletionViewSet, basename="openai-chat-completion")

urlpatterns = router.urls
