from django.apps import AppConfig


class InferenceConfig(AppConfig):
    """Tasks and models: the API, the life of a task, the providers and the engine."""

    name = "inference"
