from rest_framework.routers import SimpleRouter

from conversations.views import ConversationViewSet

router = SimpleRouter()
router.trailing_slash = "/?"
router.register("conversations", ConversationViewSet, basename="conversation")

urlpatterns = router.urls
