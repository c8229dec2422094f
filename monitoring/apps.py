from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    """The ground floor: what the service tells about itself. Imports no other app."""

    name = "monitoring"
