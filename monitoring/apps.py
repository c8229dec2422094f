from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    """Events, logs, health, statistics and metrics; imports no other app."""

    name = "monitoring"
