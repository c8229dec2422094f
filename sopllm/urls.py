"""All routes."""

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpRequest, HttpResponse
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularRedocView, SpectacularSwaggerSplitView

from inference.api.monitor_views import Metrics
from monitoring.health import report as health
from monitoring.page import page
from sopllm import openapi


def no_icon(_: HttpRequest) -> HttpResponse:
    """Browsers ask for it on every page."""
    return HttpResponse(status=204)


# The browsable API looks for these names.
signing = [
    re_path(r"^login/?$", LoginView.as_view(template_name="sopllm/login.html"), name="login"),
    re_path(r"^logout/?$", LogoutView.as_view(), name="logout"),
]

urlpatterns = [
    path("", page, name="monitor"),
    path("", include((signing, "rest_framework"))),
    path("favicon.ico", no_icon),
    path("api/v1/", include("inference.urls")),
    path("api/v1/", include("conversations.urls")),
    path("api/v1/", include("monitoring.urls")),
    path("api/v1/", include("sopllm.access.urls")),
    path("v1/", include("inference.openai.urls")),
    re_path(r"^metrics/?$", Metrics.as_view()),
    re_path(r"^healthz/?$", health.healthz),
    re_path(r"^readyz/?$", health.readyz),
    path("openapi.json", openapi.description, name="schema"),
    re_path(r"^docs/?$", SpectacularSwaggerSplitView.as_view(url_name="schema"), name="docs"),
    re_path(
        r"^redoc/?$",
        SpectacularRedocView.as_view(url_name="schema", template_name="sopllm/redoc.html"),
        name="redoc",
    ),
    path("admin/", admin.site.urls),
]

admin.site.site_header = admin.site.site_title = settings.APP_NAME
admin.site.index_title = "Tasks, models, conversations"

handler400 = "sopllm.exceptions.bad_request"
handler404 = "sopllm.exceptions.not_found"
handler500 = "sopllm.exceptions.server_error"
