"""Tasks and their attempts. Status changes of a task are made by `lifecycle` alone."""

import math
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any, NotRequired, Self, TypedDict

from django.db import connection, models
from django.db.models import Count, F, Min, Q
from django.db.models.functions import Now

from conversations.models import ChatMessage, Conversation, ToolCall
from inference.errors import FAULTS_OF_THE_SERVICE
from inference.models import task_indexes
from inference.models.attempts import TaskAttempt
from inference.models.claimable import Claimable, ClaimableQuerySet
from inference.models.costs import Costly
from inference.models.plain_sql import first_row

MAX_PRIORITY = 100


class Queue(models.TextChoices):
    """The Celery queues; a provider names the one its tasks run on."""

    GPU = "gpu"
    API = "api"
    EMBEDDINGS = "embeddings"
    DEFAULT = "default"


class Usage(TypedDict):
    """Token counts of one answer.

    `cached_tokens` of the prompt were not computed again. `reasoning_tokens` of the answer are not
    its text or calls; absent where there are none, or nobody has counted them. Of tokens that were
    drafted, those that became a part of the answer and the others; absent where there were none.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: NotRequired[int]
    accepted_prediction_tokens: NotRequired[int]
    rejected_prediction_tokens: NotRequired[int]


NO_USAGE = Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0, cached_tokens=0)


class ModelChoice(TypedDict):
    """One of the models that a task may be run by: its queue, and the parameters it gets."""

    model: str
    queue: str
    params: dict[str, Any]


class TaskResult(TypedDict):
    """The result of a generation; `model` is the one that answered.

    `logprobs` is {"content": one a token}, in OpenAI's shape; absent, as the others are, where
    there is nothing of it.
    """

    text: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    logprobs: NotRequired[dict[str, Any]]
    finish_reason: str
    usage: Usage
    model: str
    parsed: Any
    extra: dict[str, Any]


def milliseconds_between(start: datetime, end: datetime | None) -> float | None:
    """Never below zero: the database's clock has milliseconds where ours has microseconds."""
    return max(0.0, round((end - start).total_seconds() * 1000, 2)) if end else None


def new_task_id() -> str:
    return f"task_{uuid.uuid4().hex}"


def protect_unfinished(collector: Any, field: Any, rows: Any, using: str) -> None:
    """on_delete of what tasks and batches read: unfinished ones forbid it, ended ones set null."""
    if unfinished := [row for row in rows if not row.has_ended]:
        raise models.ProtectedError("They have not ended.", set(unfinished))
    models.SET_NULL(collector, field, rows, using)


class GenerationTaskQuerySet(ClaimableQuerySet["GenerationTask"]):
    def owned_by(self, owner: str) -> Self:
        return self.filter(owner=owner)

    def read(self, task_id: str) -> "GenerationTask | None":
        """The task of that id; the most frequent query."""
        return first_row(GenerationTask, _READ, [task_id])

    def pending(self) -> Self:
        return self.filter(status=GenerationTask.Status.PENDING)

    def unfinished(self) -> Self:
        return self.filter(status__in=GenerationTask.UNFINISHED)

    def may_need(self, model_name: str) -> bool:
        """Whether an unfinished one runs on the model, or names it as a fallback still to come."""
        unfinished = self.unfinished()
        # The text of the JSON, which every database can search.
        fallback = unfinished.filter(request__models__icontains=f'"{model_name}"')
        return unfinished.filter(model_name=model_name).exists() or any(
            model_name in (choice["model"] for choice in task.models_left())
            for task in fallback.only("model_name", "request").iterator(100)
        )

    def due(self) -> Self:
        """Those that may start: due, before their deadline, first in line of their conversation.

        And not of an owner who has `max_running` tasks running.
        """
        outer = models.OuterRef
        running = GenerationTask.objects.filter(
            status=GenerationTask.Status.PROCESSING, max_running__isnull=False
        )
        num_running = running.values("owner").annotate(num=Count("pk"), limit=Min("max_running"))
        at_limit = num_running.filter(num__gte=F("limit")).values("owner")
        earlier = GenerationTask.objects.unfinished().filter(
            Q(created_at__lt=outer("created_at"))
            | Q(created_at=outer("created_at"), id__lt=outer("id")),
            conversation=outer("conversation"),
        )
        return (
            self.pending()
            .filter(Q(due_at=None) | Q(due_at__lte=Now()))
            .filter(Q(deadline_at=None) | Q(deadline_at__gt=Now()))
            .filter(Q(max_running=None) | ~Q(owner__in=at_limit))
            .exclude(models.Exists(earlier))
        )

    def held_by(self, worker: str) -> dict[str, tuple[int, bool]]:
        """As of any row; plain SQL since every worker asks several times a second."""
        with connection.cursor() as cursor:
            cursor.execute(_HELD_BY, [worker])
            return {pk: (attempt, bool(cancel)) for pk, attempt, cancel in cursor.fetchall()}

    def dead(self) -> Self:
        """Failed for no fault of the request, and not requeued."""
        failed = self.filter(status=GenerationTask.Status.FAILED, requeued_as=None)
        return failed.filter(error_code__in=FAULTS_OF_THE_SERVICE)

    def most_urgent_first(self) -> Self:
        return self.order_by("-priority", "created_at", "id")


class GenerationTask(Claimable, Costly):
    """A unit of work: a prompt for a model, and what became of it.

    pending ──claim──▶ processing ──▶ completed | failed
       ▲                   │   └────▶ cancelled
       └───lease expired───┘
       └───next fallback───┘
    pending ──▶ cancelled (by its owner) | failed (deadline passed)

    A pending one may be claimed at once, unless `due_at` says from when on. `model_name` and
    `queue` are those of the model whose turn it is: of `requested_model` first, then of its
    fallbacks; the request keeps what each of them needs.
    """

    class Status(models.TextChoices):
        PENDING = "pending"
        PROCESSING = "processing"
        COMPLETED = "completed"
        FAILED = "failed"
        CANCELLED = "cancelled"

    UNFINISHED = (Status.PENDING, Status.PROCESSING)

    id = models.CharField(primary_key=True, max_length=37, default=new_task_id)
    owner = models.CharField(max_length=64)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    requested_model = models.CharField(max_length=100)
    model_name = models.CharField(max_length=100)
    queue = models.CharField(max_length=10, choices=Queue.choices)
    priority = models.FloatField(default=1.0)
    # How much its priority has grown while it waited.
    aged = models.PositiveIntegerField(default=0)
    # How large its owner's share of the queue is, beside those of others at the same priority.
    weight = models.FloatField(default=1.0)
    # How many tasks of its owner may run at a time; null: any number.
    max_running = models.PositiveIntegerField(null=True, blank=True)
    # What all tasks of its owner may cost in a month; null: any sum.
    max_usd_per_month = models.FloatField(null=True, blank=True)
    # What its attempt may cost, in billionths of a dollar; it counts while the task is processing.
    reserved_nano_usd = models.BigIntegerField(null=True, blank=True)
    request = models.JSONField()
    conversation = models.ForeignKey(
        Conversation, null=True, blank=True, on_delete=protect_unfinished, related_name="tasks"
    )
    metadata = models.JSONField(default=dict, blank=True)
    idempotency_key = models.CharField(max_length=255, null=True, blank=True)
    request_hash = models.CharField(max_length=64, blank=True)
    trace_id = models.CharField(max_length=64, null=True, blank=True)
    # The ended task that this one was made of, and the one that was made of this; they may be gone.
    requeued_from = models.CharField(max_length=37, null=True, blank=True)
    requeued_as = models.CharField(max_length=37, null=True, blank=True)

    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    deadline_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    enqueued_at = models.DateTimeField(null=True, blank=True)
    cancel_requested = models.BooleanField(default=False)

    result = models.JSONField(null=True, blank=True)
    error = models.TextField(null=True, blank=True)
    error_code = models.CharField(max_length=64, null=True, blank=True)
    model_load_ms = models.FloatField(null=True, blank=True)
    ttft_ms = models.FloatField(null=True, blank=True)
    inference_ms = models.FloatField(null=True, blank=True)

    objects = GenerationTaskQuerySet.as_manager()

    if TYPE_CHECKING:
        conversation_id: str | None
        has_share: bool  # of a row as its claim gives it

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["owner", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
                name="task_idempotency",
            )
        ]
        indexes = [*Claimable.Meta.indexes, *task_indexes.INDEXES]

    def __str__(self) -> str:
        return f"{self.id} ({self.status})"

    @property
    def response_id(self) -> str:
        """Its id at /v1/responses."""
        return f"resp_{self.pk.removeprefix('task_')}"

    @property
    def has_ended(self) -> bool:
        return self.status not in self.UNFINISHED

    @property
    def broker_priority(self) -> int:
        """Redis priority of the task's message: 0 is the most urgent, 9 the least."""
        return 9 - math.floor(self.priority * 9 / MAX_PRIORITY)

    @property
    def queue_wait_ms(self) -> float | None:
        """From submission to the start of the last attempt; None unless it has started."""
        return milliseconds_between(self.created_at, self.started_at)

    @property
    def total_ms(self) -> float | None:
        """From submission to the end of the last attempt; None unless that has stored its times."""
        if self.queue_wait_ms is None or self.inference_ms is None:
            return None
        return self.queue_wait_ms + (self.model_load_ms or 0) + self.inference_ms

    @property
    def usage(self) -> Usage:
        """The token counts of the result; zeros without one."""
        usage: Usage = self.result["usage"] if self.result else NO_USAGE
        return usage

    @property
    def was_lost(self) -> bool:
        """Whether the worker of its last attempt was lost: perhaps its prompt has ended it."""
        num_ended = self.attempt - (self.status == self.Status.PROCESSING)
        lost = self.attempts.filter(number=num_ended, outcome=TaskAttempt.Outcome.LOST)
        return num_ended > 0 and lost.exists()

    def next_model(self) -> ModelChoice | None:
        """The model to run if the present one fails."""
        return next(iter(self.models_left()), None)

    def models_left(self) -> list[ModelChoice]:
        """The fallbacks that have not had their turn."""
        choices: list[ModelChoice] = self.request.get("models", [])
        names = [choice["model"] for choice in choices]
        return choices[names.index(self.model_name) + 1 :] if choices else []

    def messages(self) -> list[ChatMessage]:
        """What the model reads, with the conversation as it is now."""
        if self.request.get("messages"):
            return list(self.request["messages"])
        if self.conversation:
            return self.conversation.context(self.request["prompt"])
        return [{"role": "user", "content": self.request["prompt"]}]


_HELD_BY = """
    SELECT id, attempt, cancel_requested FROM inference_generationtask
    WHERE lease_until IS NOT NULL AND worker = %s
"""
_READ = f"SELECT * FROM {GenerationTask._meta.db_table} WHERE id = %s"  # noqa: S608 (our own name)
