"""Conversations and their messages."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NotRequired, TypedDict

from django.db import models, transaction
from django.db.models import Count, OuterRef, Subquery
from django.db.models.functions import Coalesce


class ToolFunction(TypedDict):
    """What a model calls; `arguments` is JSON text as the model wrote it."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a tool, in OpenAI's shape; `type` is function."""

    id: str
    type: str
    function: ToolFunction


class ChatMessage(TypedDict):
    """One message as models read it; `role` is system, user, assistant or tool.

    `content` is a list of parts, in OpenAI's shape, only where one of them is an image. An
    assistant may call tools; a message of a tool says which call it answers.
    """

    role: str
    content: str | list[dict[str, Any]]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]


def text_of(message: ChatMessage) -> str:
    """The text of a message, without its images; "" of one that only calls tools."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if part["type"] == "text")


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

    history_end: int

    objects = ConversationQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["owner", "-created_at"], name="conversation_list"),
            models.Index(fields=["-created_at", "-id"], name="conversation_list_of_all"),
        ]

    def __str__(self) -> str:
        return self.id

    def context(self, prompt: str | None, history_end: int | None = None) -> list[ChatMessage]:
        """What a model reads to answer `prompt`: system prompt, history, prompt.

        None: the history asks by itself, with the results of tools for instance. `history_end`: up
        to the message of that `id`, as far as it is there; else `history_end` of this object says
        where the history ends that was read, 0 for an empty one.
        """
        messages: list[ChatMessage] = []
        if self.system_prompt:
            messages.append({"role": Message.Role.SYSTEM, "content": self.system_prompt})
        history = self.messages.order_by("id")
        if history_end is not None:
            history = history.filter(id__lte=history_end)
        read = list(history)
        self.history_end = read[-1].id if read else 0
        messages += answered([message.as_read() for message in read])
        if prompt is not None:
            messages.append({"role": Message.Role.USER, "content": prompt})
        return messages

    @property
    def asks(self) -> bool:
        """Whether its last message, of a user or a tool, waits for an answer."""
        last = self.messages.order_by("-id").values_list("role", flat=True).first()
        return last in (Message.Role.USER, Message.Role.TOOL)

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

    def append(self, message: ChatMessage) -> "Message":
        """Add one message at the end; of images, it keeps nothing."""
        with transaction.atomic():
            row = Message.of(self, message)
            row.save()
            self.save(update_fields=["updated_at"])
        return row

    def clear(self) -> None:
        """Delete all messages."""
        with transaction.atomic():
            self.messages.all().delete()
            self.save(update_fields=["updated_at"])

    def append_turn(self, messages: Iterable[ChatMessage]) -> None:
        """Add a question and its answer; call it inside the transaction that saves the answer."""
        Message.objects.bulk_create([Message.of(self, message) for message in messages])
        self.save(update_fields=["updated_at"])


class Message(models.Model):
    """One message of a conversation; `id` orders them."""

    class Role(models.TextChoices):
        SYSTEM = "system"
        USER = "user"
        ASSISTANT = "assistant"
        TOOL = "tool"

    message_id = models.CharField(max_length=36, default=new_message_id, unique=True)
    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="messages"
    )
    role = models.CharField(max_length=9, choices=Role.choices)
    content = models.TextField(blank=True)
    # Those of an assistant's message, in OpenAI's shape, and which of them a tool's result answers.
    tool_calls = models.JSONField(null=True, blank=True)
    tool_call_id = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["conversation", "id"], name="message_history")]

    def __str__(self) -> str:
        return f"{self.role}: {self.content[:60]}"

    @classmethod
    def of(cls, conversation: Conversation, message: ChatMessage) -> "Message":
        """A message as a row, unsaved."""
        return cls(
            conversation=conversation,
            role=message["role"],
            content=text_of(message),
            tool_calls=message.get("tool_calls"),
            tool_call_id=message.get("tool_call_id", ""),
        )

    def as_read(self) -> ChatMessage:
        """As models read it."""
        message = ChatMessage(role=self.role, content=self.content)
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


def answered(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages without calls that no tool has answered, which providers refuse in a history."""
    results = {message.get("tool_call_id") for message in messages}
    kept: list[ChatMessage] = []
    for message in messages:
        calls = message.get("tool_calls", [])
        if all(call["id"] in results for call in calls):
            kept.append(message)
        elif message["content"]:
            kept.append(ChatMessage(role=message["role"], content=message["content"]))
    called = {call["id"] for message in kept for call in message.get("tool_calls", [])}
    return [each for each in kept if each.get("tool_call_id") in {None, *called}]
