from django.apps import AppConfig


class ConversationsConfig(AppConfig):
    """Dialogues with memory. Does not know about tasks."""

    name = "conversations"
