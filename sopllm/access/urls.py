from django.urls import re_path
from rest_framework.routers import SimpleRouter

from sopllm.access import views

router = SimpleRouter()
router.trailing_slash = "/?"
router.register("keys", views.ApiKeyViewSet, basename="key")

urlpatterns = [
    *router.urls,
    re_path(r"^monitor/ticket/?$", views.ticket, name="monitor-ticket"),
]
