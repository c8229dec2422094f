"""Rows by the hundred thousand, as the service itself would have written them: copies in SQL.

A task that was submitted and completed through the service's own functions is the template of each
kind of row; what differs from row to row is an expression of its number `n`.
"""

from django.db import connection, models

from conversations.models import Conversation, Message
from inference.models import GenerationTask, WebhookDelivery
from monitoring.models import EndedTask, OwnerUse

NUM_OWNERS = 100
NUM_MODELS = 10
_NUM_CONVERSATIONS = 5000
_NUM_MESSAGES = 20  # of each
_NUM_PRIORITIES = 5
# One of so many tasks has a key, is in a conversation, has failed, was cancelled, had a webhook.
_KEYS, _TURNS, _FAILED, _CANCELLED, _WEBHOOKS = 10, 20, 50, 100, 20

_ID = "MD5('{kind}' || n)"
_OWNER = f"'owner-' || n % {NUM_OWNERS}"
_MODEL = f"'model-' || n % {NUM_MODELS}"
# The last day, evenly: rows are kept for one.
_MADE = "NOW() - n * INTERVAL '23 hours' / {num_rows}"
_CONVERSATION = f"'conv_' || MD5('conv' || n / {_TURNS} % {_NUM_CONVERSATIONS})"


def fill(template: GenerationTask, num_ended: int, num_pending: int) -> None:
    """Copies of an ended task; `num_pending` of them as they were before their first claim."""
    with connection.cursor() as cursor:
        # Each row would be looked up in the table that it refers to.
        cursor.execute("SET session_replication_role = replica")
    made = _MADE.format(num_rows=num_ended)
    outcome = (
        f"CASE WHEN n / {NUM_OWNERS} % {_CANCELLED} = 1 THEN 'cancelled' "
        f"WHEN n / {NUM_OWNERS} % {_FAILED} = 2 THEN 'failed' ELSE 'completed' END"
    )
    conversations = Conversation(owner=template.owner)
    conversations.save()
    conversation_id = f"'conv_' || MD5('conv' || (n - 1) % {_NUM_CONVERSATIONS})"
    _copy(
        conversations,
        _NUM_CONVERSATIONS,
        id="'conv_' || MD5('conv' || n - 1)",
        owner=f"'owner-' || (n - 1) % {NUM_OWNERS}",
        created_at=_MADE.format(num_rows=_NUM_CONVERSATIONS),
    )
    message = Message(conversation=conversations, role=Message.Role.USER, content="A question.")
    message.save()
    _copy(
        message,
        _NUM_CONVERSATIONS * _NUM_MESSAGES,
        message_id=f"'msg_' || {_ID.format(kind='message')}",
        conversation_id=conversation_id,
    )
    common = {"owner": _OWNER, "requested_model": _MODEL, "model_name": _MODEL}
    _copy(
        template,
        num_ended,
        **common,
        id=f"'task_' || {_ID.format(kind='ended')}",
        status=outcome,
        created_at=made,
        updated_at=made,
        started_at=made,
        finished_at=made,
        expires_at=f"{made} + INTERVAL '1 day'",
        idempotency_key=f"CASE WHEN n % {_KEYS} = 0 THEN 'key-' || n END",
        conversation_id=f"CASE WHEN n % {_TURNS} = 0 THEN {_CONVERSATION} END",
    )
    _copy(
        template,
        num_pending,
        **common,
        id=f"'task_' || {_ID.format(kind='pending')}",
        status="'pending'",
        priority=f"n % {_NUM_PRIORITIES}",
        queue="CASE WHEN n % 2 = 0 THEN 'api' ELSE 'gpu' END",
        attempt="0",
        created_at="NOW() - n * INTERVAL '1 ms'",
        **dict.fromkeys(("started_at", "finished_at", "expires_at", "result"), "NULL"),
        enqueued_at="NOW()",
    )
    attempt = template.attempts.get()
    _copy(attempt, num_ended, task_id=f"'task_' || {_ID.format(kind='ended')}")
    ended = EndedTask.objects.latest("pk")
    spread = {"queue_wait_ms": "RANDOM() * 1000", "total_ms": "RANDOM() * 9000"}
    _copy(
        ended,
        num_ended,
        owner=_OWNER,
        model_name=_MODEL,
        outcome=outcome,
        ended_at=f"NOW() - n * INTERVAL '7 days' / {num_ended}",
        **spread,
    )
    delivery = WebhookDelivery.objects.create(
        owner=template.owner,
        url="https://example.com",
        event=WebhookDelivery.Event.COMPLETED,
        payload="{}",
        status=WebhookDelivery.Status.DELIVERED,
        task=template,
        created_at=template.created_at,
        give_up_at=template.created_at,
        expires_at=template.expires_at,
    )
    _copy(
        delivery,
        num_ended // _WEBHOOKS,
        id=f"'whk_' || {_ID.format(kind='webhook')}",
        owner=_OWNER,
        task_id=f"'task_' || MD5('ended' || n * {_WEBHOOKS})",
        expires_at=f"NOW() + n * INTERVAL '1 day' / {num_ended // _WEBHOOKS}",
    )
    use = OwnerUse.objects.get(owner=template.owner)
    _copy(
        use,
        NUM_OWNERS * 396,
        owner=_OWNER,
        day=f"(NOW() AT TIME ZONE 'UTC')::date - 1 - (n - 1) / {NUM_OWNERS}",
    )
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = DEFAULT")
        cursor.execute("VACUUM ANALYZE")


def _copy(template: models.Model, num_rows: int, **values: str) -> None:
    """Insert so many rows like the template, with other values: SQL expressions of `n`, from 1."""
    fields = [field for field in template._meta.concrete_fields if field.column]
    columns = {
        str(field.column): values.get(str(field.column), f"template.{field.column}")
        for field in fields
        if not isinstance(field, models.BigAutoField)
    }
    table = template._meta.db_table
    statement = f"""
        INSERT INTO {table} ({", ".join(columns)}) SELECT {", ".join(columns.values())}
        FROM {table} AS template, GENERATE_SERIES(1, {num_rows}) AS n
        WHERE template.{template._meta.pk.column} = '{template.pk}'
    """  # noqa: S608 (our own names)
    with connection.cursor() as cursor:
        cursor.execute(statement)
