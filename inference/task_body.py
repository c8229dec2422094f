"""The task as the API, webhooks and streams show it."""

from datetime import datetime
from functools import cache
from typing import Any

from rest_framework import serializers

from conversations.serializers import ToolCallSerializer
from inference import estimates
from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode
from inference.models import GenerationTask, queue_positions
from monitoring.api.owners import OwnerField
from monitoring.api.principal import principal_of


class UsageSerializer(serializers.Serializer[Any]):
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    total_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    # Absent where there are none, as the next two.
    reasoning_tokens = serializers.IntegerField(required=False)
    accepted_prediction_tokens = serializers.IntegerField(required=False)
    rejected_prediction_tokens = serializers.IntegerField(required=False)


class TopLogprobSerializer(serializers.Serializer[Any]):
    token = serializers.CharField()
    logprob = serializers.FloatField()
    bytes = serializers.ListField(child=serializers.IntegerField(), allow_null=True)


class TokenLogprobSerializer(TopLogprobSerializer):
    top_logprobs = TopLogprobSerializer(many=True)


class LogprobsSerializer(serializers.Serializer[Any]):
    """In OpenAI's shape: one for each generated token."""

    content = serializers.ListField(child=TokenLogprobSerializer())


class ResultSerializer(serializers.Serializer[Any]):
    text = serializers.CharField()
    # Absent where there is nothing of it.
    reasoning_content = serializers.CharField(default=None, allow_null=True)
    tool_calls = ToolCallSerializer(many=True, default=None, allow_null=True)
    logprobs = LogprobsSerializer(default=None, allow_null=True)
    finish_reason = serializers.ChoiceField(choices=[reason.value for reason in FinishReason])
    usage = UsageSerializer()
    model = serializers.CharField()
    parsed = serializers.JSONField()
    extra = serializers.DictField()


class EtaSerializer(serializers.Serializer[Any]):
    p10 = serializers.FloatField()
    p50 = serializers.FloatField()
    p90 = serializers.FloatField()


class TaskSerializer(serializers.ModelSerializer[GenerationTask]):
    """The task body."""

    task_id = serializers.CharField(source="id")
    owner = OwnerField()
    model = serializers.CharField(source="requested_model")
    result = ResultSerializer(allow_null=True)
    queue_position = serializers.SerializerMethodField()
    estimated_start_at = serializers.DateTimeField(
        allow_null=True, default=None, help_text="Null once it has ended, and until it is known."
    )
    estimated_finish_at = serializers.DateTimeField(
        allow_null=True, default=None, help_text="The median."
    )
    eta_seconds = EtaSerializer(
        allow_null=True, default=None, help_text="Until it ends: with these probabilities."
    )
    conversation_id = serializers.CharField(allow_null=True)
    webhook_url = serializers.CharField(source="request.webhook_url", allow_null=True)
    cost_usd = serializers.FloatField(allow_null=True)

    class Meta:
        model = GenerationTask
        fields = (
            "task_id",
            "owner",
            "status",
            "model",
            "priority",
            "created_at",
            "updated_at",
            "started_at",
            "finished_at",
            "result",
            "error",
            "error_code",
            "attempt",
            "queue_position",
            "estimated_start_at",
            "estimated_finish_at",
            "eta_seconds",
            "conversation_id",
            "webhook_url",
            "idempotency_key",
            "metadata",
            "trace_id",
            "requeued_from",
            "requeued_as",
            "gpu_seconds",
            "energy_joules",
            "cost_usd",
        )
        read_only_fields = fields

    def to_representation(self, task: GenerationTask) -> dict[str, Any]:
        """What the fields would give, which takes DRF several times as long."""
        body: dict[str, Any] = {"task_id": task.pk}
        request = self.context.get("request")
        if request is not None and principal_of(request).is_staff:
            body["owner"] = task.owner
        if (result := task.result) is not None:
            result = {name: result.get(name) for name in _RESULT_FIELDS}
        position = self.get_queue_position(task)
        return body | {
            "status": str(task.status),
            "model": task.requested_model,
            "priority": task.priority,
            "created_at": _iso(task.created_at),
            "updated_at": _iso(task.updated_at),
            "started_at": _iso(task.started_at),
            "finished_at": _iso(task.finished_at),
            "result": result,
            "error": task.error,
            "error_code": task.error_code,
            "attempt": task.attempt,
            "queue_position": position,
            **self._estimate(task, position),
            "conversation_id": task.conversation_id,
            "webhook_url": task.request.get("webhook_url"),
            "idempotency_key": task.idempotency_key,
            "metadata": task.metadata,
            "trace_id": task.trace_id,
            "requeued_from": task.requeued_from,
            "requeued_as": task.requeued_as,
            "gpu_seconds": task.gpu_seconds,
            "energy_joules": task.energy_joules,
            "cost_usd": task.cost_usd,
        }

    def _estimate(self, task: GenerationTask, position: int | None) -> dict[str, Any]:
        estimate = estimates.of(task, position)
        return {
            "estimated_start_at": _iso(estimate.start_at) if estimate else None,
            "estimated_finish_at": _iso(estimate.finish_at) if estimate else None,
            "eta_seconds": estimate.eta_seconds if estimate else None,
        }

    def get_queue_position(self, task: GenerationTask) -> int | None:
        """0 is next; null unless pending. A list hands the positions over, to query them once."""
        if task.status != GenerationTask.Status.PENDING:
            return None
        positions: dict[str, int] | None = self.context.get("queue_positions")
        return (queue_positions([task]) if positions is None else positions).get(task.pk)


_RESULT_FIELDS = tuple(ResultSerializer().fields)


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat().replace("+00:00", "Z") if moment else None


@cache
def _task_serializer() -> TaskSerializer:
    """One instance for all answers: building one takes longer than using it."""
    return TaskSerializer()


def task_body(task: GenerationTask) -> dict[str, Any]:
    """The task as the API shows it."""
    return _task_serializer().to_representation(task)


def was_cut(task: GenerationTask) -> bool:
    """Whether its answer reached max_tokens; for a structured output that is a failure."""
    has_answer = task.status == GenerationTask.Status.COMPLETED or (
        task.error_code == ErrorCode.STRUCTURED_OUTPUT_INVALID
    )
    return bool(has_answer and task.result and task.result["finish_reason"] == FinishReason.LENGTH)
