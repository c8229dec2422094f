from django.apps import AppConfig


class AccessConfig(AppConfig):
    name = "sopllm.access"
    label = "access"
    verbose_name = "Access"
