"""Conversations and their messages."""

import uuid
from typing import Any, TypedDict

from django.db import models, transaction
from django.db.models import Count, OuterRef, Subquery
from django.db.models.functions import Coalesce


class ChatMessage(TypedDict):
    """One message as models read it; `role` is system, user or assistant."""

    role: str
    content: str


def new_conversation_id() -> str:
    return f"conv_{uuid.uuid4().hex}"


def new_message_id() -> str:
    return f"msg_{uuid.uuid4().hex}"


class ConversationQuerySet(models.QuerySet["Conversation"]):
    def owned_by(self, owner: str) -> "ConversationQuerySet":
        return self.filter(owner=owner)

    def counted(self) -> "ConversationQuerySet":
        """With `message_count`, counted for the rows that are read: a join would count them all."""
        own = Message.objects.filter(conversation=OuterRef("pk")).order_by().values("conversation")
        count = own.annotate(num=Count("pk")).values("num")
        return self.annotate(message_count=Coalesce(Subquery(count), 0))


class Conversation(models.Model):
    """A dialogue: a system prompt and messages, which tasks read as context and add to."""

    id = models.CharField(primary_key=True, max_length=37, default=new_conversation_id)
    owner = models.CharField(max_length=64)
    model_name = models.CharField(max_length=100, blank=True)
    system_prompt = models.TextField(blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = ConversationQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["owner", "-created_at"], name="conversation_list"),
            models.Index(fields=["-created_at", "-id"], name="conversation_list_of_all"),
        ]

    def __str__(self) -> str:
        return self.id

    def context(self, prompt: str) -> list[ChatMessage]:
        """What a model reads to answer `prompt`: system prompt, history, prompt."""
        messages: list[ChatMessage] = []
        if self.system_prompt:
            messages.append({"role": Message.Role.SYSTEM, "content": self.system_prompt})
        history = self.messages.order_by("id").values_list("role", "content")
        messages.extend({"role": role, "content": content} for role, content in history)
        messages.append({"role": Message.Role.USER, "content": prompt})
        return messages

    def remove(self) -> None:
        """Delete it with its messages. Raises ProtectedError while unfinished tasks are in it.

        The lock keeps tasks from joining between that check and the deletion.
        """
        with transaction.atomic():
            Conversation.objects.select_for_update().filter(pk=self.pk).exists()
            self.delete()

    def change(self, **fields: Any) -> None:
        """Save some fields; concurrent changes of the others are kept."""
        for name, value in fields.items():
            setattr(self, name, value)
        self.save(update_fields=[*fields, "updated_at"])

    def append(self, role: str, content: str) -> "Message":
        """Add one message at the end."""
        with transaction.atomic():
            message = Message.objects.create(conversation=self, role=role, content=content)
            self.save(update_fields=["updated_at"])
        return message

    def clear(self) -> None:
        """Delete all messages."""
        with transaction.atomic():
            self.messages.all().delete()
            self.save(update_fields=["updated_at"])

    def append_turn(self, prompt: str, answer: str) -> None:
        """Add a question and its answer; call it inside the transaction that saves the answer."""
        Message.objects.bulk_create(
            [
                Message(conversation=self, role=Message.Role.USER, content=prompt),
                Message(conversation=self, role=Message.Role.ASSISTANT, content=answer),
            ]
        )
        self.save(update_fields=["updated_at"])


class Message(models.Model):
    """One message of a conversation; `id` orders them."""

    class Role(models.TextChoices):
        SYSTEM = "system"
        USER = "user"
        ASSISTANT = "assistant"

    message_id = models.CharField(max_length=36, default=new_message_id, unique=True)
    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="messages"
    )
    role = models.CharField(max_length=9, choices=Role.choices)
    content = models.TextField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["conversation", "id"], name="message_history")]

    def __str__(self) -> str:
        return f"{self.role}: {self.content[:60]}"
