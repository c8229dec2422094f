"""Celery's signal that beat starts; without Django's apps, which it has no use for."""

from typing import Any

from celery import signals
from django.conf import settings
from django.utils.log import configure_logging

from monitoring.logs import service_log


@signals.setup_logging.connect
def on_setup_logging(**_: Any) -> None:
    """The format and the levels of all processes, which Django's apps would set."""
    configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)


@signals.beat_init.connect
def on_beat_start(**_: Any) -> None:
    """Beat logs to the same place as the others."""
    service_log.start("beat")
