"""The routes below /api/v1/monitor/."""

from django.urls import re_path

from monitoring import views

urlpatterns = [
    re_path(r"^monitor/health/?$", views.health, name="monitor-health"),
    re_path(r"^monitor/gpu/?$", views.gpu, name="monitor-gpu"),
    re_path(r"^monitor/logs/?$", views.logs, name="monitor-logs"),
    re_path(r"^monitor/events/?$", views.events, name="monitor-events"),
    re_path(r"^monitor/stats/?$", views.stats, name="monitor-stats"),
]
