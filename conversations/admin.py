from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString, mark_safe

from conversations.models import Conversation, Message

_MAX_SHOWN = 500
_MESSAGE = (
    '<li class="dialogue-{}"><span class="dialogue-head">{} · {}</span>'
    '<div class="dialogue-text">{}</div></li>'
)


@admin.register(Conversation)
class ConversationAdmin(admin.ModelAdmin[Conversation]):
    list_display = ("id", "model_name", "num_messages", "updated_at", "created_at", "owner")
    list_filter = ("model_name",)
    search_fields = ("id", "owner", "system_prompt")
    ordering = ("-created_at",)
    show_full_result_count = False
    fields = ("id", "owner", "model_name", "system_prompt", "metadata", "dialogue")
    readonly_fields = ("id", "owner", "dialogue")

    class Media:
        css = {"all": ("conversations/dialogue.css",)}

    def has_add_permission(self, request: HttpRequest) -> bool:
        """A conversation belongs to a caller of the API: POST /api/v1/conversations."""
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Conversation]:
        return Conversation.objects.counted().order_by(*self.get_ordering(request))

    @admin.display(description="messages", ordering="message_count")
    def num_messages(self, conversation: Conversation) -> int:
        return int(getattr(conversation, "message_count", 0))

    @admin.display(description="dialogue")
    def dialogue(self, conversation: Conversation) -> SafeString:
        """The last messages as people read them: one below the other, the sides apart."""
        last = list(conversation.messages.order_by("-id")[:_MAX_SHOWN])[::-1]
        if not last:
            return mark_safe("No messages yet.")
        lines = format_html_join("", _MESSAGE, (_parts(message) for message in last))
        return mark_safe(f'<ol class="dialogue">{lines}</ol>')  # noqa: S308 (escaped above)


def _parts(message: Message) -> tuple[str, str, str, str]:
    moment = f"{message.created_at:%Y-%m-%d %H:%M:%S}"
    return (message.role, message.get_role_display(), moment, message.content)
