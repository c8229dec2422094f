from django.apps import AppConfig


class SopllmConfig(AppConfig):
    """The composition root."""

    name = "sopllm"

    def ready(self) -> None:
        # Whoever publishes needs the Celery application, and the checks must be known.
        import celery_app  # noqa: F401
        from sopllm import checks  # noqa: F401
