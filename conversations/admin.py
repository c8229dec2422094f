from django.contrib import admin

from conversations.models import Conversation, Message


class MessageInline(admin.TabularInline[Message, Conversation]):
    model = Message
    fields = ("role", "content", "created_at")
    readonly_fields = ("created_at",)
    ordering = ("id",)
    extra = 0


@admin.register(Conversation)
class ConversationAdmin(admin.ModelAdmin[Conversation]):
    list_display = ("id", "owner", "model_name", "created_at", "updated_at")
    search_fields = ("id", "owner")
    list_filter = ("model_name",)
    readonly_fields = ("id", "created_at", "updated_at")
    inlines = (MessageInline,)
