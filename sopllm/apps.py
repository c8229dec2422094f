from django.apps import AppConfig


class SopllmConfig(AppConfig):
    """The composition root."""

    name = "sopllm"

    def ready(self) -> None:
        # Registers the Celery application, for `shared_task` and publishers, and the checks.
        import celery_app  # noqa: F401
        from sopllm import checks  # noqa: F401
