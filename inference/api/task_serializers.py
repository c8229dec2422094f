"""What the API takes and gives: one serializer a shape."""

from functools import cache
from typing import Any

from rest_framework import serializers

from conversations.serializers import MAX_CONTENT_CHARS, NewMessageSerializer
from inference.engine.sequence import FinishReason
from inference.models import MAX_PRIORITY, GenerationTask, TaskAttempt, WebhookDelivery
from monitoring.api.metadata import MetadataField
from monitoring.api.strict_serializer import StrictSerializer

MAX_BATCH = 1000
MAX_KEY_LENGTH = 255


class SamplingSerializer(StrictSerializer):
    """How the next token is chosen; null means the model's own default."""

    temperature = serializers.FloatField(required=False, allow_null=True, min_value=0, max_value=2)
    top_p = serializers.FloatField(required=False, allow_null=True, min_value=0, max_value=1)
    top_k = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=1_000_000
    )
    min_p = serializers.FloatField(required=False, allow_null=True, min_value=0, max_value=1)
    frequency_penalty = serializers.FloatField(
        required=False, allow_null=True, min_value=-2, max_value=2
    )
    presence_penalty = serializers.FloatField(
        required=False, allow_null=True, min_value=-2, max_value=2
    )
    repeat_penalty = serializers.FloatField(
        required=False, allow_null=True, min_value=0.01, max_value=100
    )
    seed = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=2**32 - 2
    )
    max_tokens = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, max_value=128_000
    )
    stop_sequences = serializers.ListField(
        child=serializers.CharField(trim_whitespace=False, min_length=1, max_length=1000),
        required=False,
        allow_null=True,
        max_length=16,
    )


SAMPLING_FIELDS = tuple(SamplingSerializer().fields)


class ProviderConfigSerializer(StrictSerializer):
    """Intake style: names the model."""

    model_name = serializers.CharField()


class TaskSubmissionSerializer(SamplingSerializer):
    """A new task; `submission.py` says what the fields mean together."""

    model = serializers.CharField(required=False, max_length=100)
    prompt = serializers.CharField(
        required=False, trim_whitespace=False, max_length=MAX_CONTENT_CHARS
    )
    messages = NewMessageSerializer(many=True, required=False, allow_empty=False)
    conversation_id = serializers.CharField(required=False, allow_null=True, max_length=37)
    save_to_conversation = serializers.BooleanField(default=True)
    stop = serializers.ListField(
        child=serializers.CharField(trim_whitespace=False, min_length=1, max_length=1000),
        required=False,
        allow_null=True,
        max_length=16,
        help_text="Alias of stop_sequences.",
    )
    response_format = serializers.JSONField(
        required=False,
        allow_null=True,
        help_text='{"type": "json_object"}, or {"type": "json_schema", "json_schema": {"schema"}}.',
    )
    grammar = serializers.CharField(required=False, allow_null=True, trim_whitespace=False)
    stream = serializers.BooleanField(default=False)
    webhook_url = serializers.CharField(required=False, allow_null=True)
    idempotency_key = serializers.CharField(
        required=False, allow_null=True, max_length=MAX_KEY_LENGTH
    )
    priority = serializers.FloatField(default=1.0, min_value=0, max_value=MAX_PRIORITY)
    fallback_models = serializers.ListField(
        child=serializers.CharField(max_length=100), required=False, allow_null=True, max_length=8
    )
    timeout_seconds = serializers.FloatField(default=600.0, min_value=1, max_value=86_400)
    deadline_seconds = serializers.FloatField(
        required=False, allow_null=True, min_value=0.001, max_value=31_536_000
    )
    context_overflow = serializers.ChoiceField(choices=["truncate", "error"], default="truncate")
    metadata = MetadataField(required=False, allow_null=True)
    extra_params = serializers.DictField(required=False, allow_null=True)
    input_text = serializers.CharField(
        required=False, trim_whitespace=False, max_length=MAX_CONTENT_CHARS
    )
    output_schema = serializers.JSONField(
        required=False, allow_null=True, help_text="A JSON Schema: a json_schema response_format."
    )
    provider_config = ProviderConfigSerializer(required=False)
    generation_params = SamplingSerializer(required=False)


@cache
def submission_validator() -> TaskSubmissionSerializer:
    """One instance for all submissions: validating does not change it, building it is slow."""
    return TaskSubmissionSerializer()


class UsageSerializer(serializers.Serializer[Any]):
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    total_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()


class ResultSerializer(serializers.Serializer[Any]):
    text = serializers.CharField()
    finish_reason = serializers.ChoiceField(choices=[reason.value for reason in FinishReason])
    usage = UsageSerializer()
    model = serializers.CharField()
    parsed = serializers.JSONField()
    extra = serializers.DictField()


class TaskSerializer(serializers.ModelSerializer[GenerationTask]):
    """The task body."""

    task_id = serializers.CharField(source="id")
    model = serializers.CharField(source="requested_model")
    result = ResultSerializer(allow_null=True)
    queue_position = serializers.SerializerMethodField()
    conversation_id = serializers.CharField(allow_null=True)
    webhook_url = serializers.CharField(source="request.webhook_url", allow_null=True)

    class Meta:
        model = GenerationTask
        fields = (
            "task_id",
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
            "conversation_id",
            "webhook_url",
            "idempotency_key",
            "metadata",
            "trace_id",
        )
        read_only_fields = fields

    def get_queue_position(self, task: GenerationTask) -> int | None:
        """0 is next; null unless pending. A list hands the positions over, to query them once."""
        positions: dict[str, int] | None = self.context.get("queue_positions")
        return task.queue_position() if positions is None else positions.get(task.pk)


@cache
def _task_serializer() -> TaskSerializer:
    """One instance for all answers: building one takes longer than using it."""
    return TaskSerializer()


def task_body(task: GenerationTask) -> dict[str, Any]:
    """The task as the API shows it."""
    return _task_serializer().to_representation(task)


class AttemptSerializer(serializers.ModelSerializer[TaskAttempt]):
    model = serializers.CharField(source="model_name")

    class Meta:
        model = TaskAttempt
        fields = (
            *("number", "worker", "model", "started_at", "ended_at", "outcome"),
            *("error_code", "error"),
        )
        read_only_fields = fields


class MetricsSerializer(serializers.Serializer[Any]):
    """Milliseconds, null for what did not happen."""

    queue_wait_ms = serializers.FloatField(allow_null=True)
    model_load_ms = serializers.FloatField(allow_null=True)
    ttft_ms = serializers.FloatField(allow_null=True, help_text="Claim to first text.")
    inference_ms = serializers.FloatField(
        allow_null=True, help_text="Attempt without model loading."
    )
    total_ms = serializers.FloatField(allow_null=True)
    tokens_per_second = serializers.FloatField(allow_null=True)


class DeliveryAttemptSerializer(serializers.Serializer[Any]):
    attempt = serializers.IntegerField()
    at = serializers.CharField()
    status_code = serializers.IntegerField(allow_null=True)
    error = serializers.CharField(allow_null=True)
    duration_ms = serializers.FloatField()


class WebhookDeliverySerializer(serializers.ModelSerializer[WebhookDelivery]):
    webhook_id = serializers.CharField(source="id")
    log = DeliveryAttemptSerializer(many=True)

    class Meta:
        model = WebhookDelivery
        fields = (
            *("webhook_id", "url", "event", "status", "num_attempts", "next_attempt_at"),
            *("delivered_at", "log"),
        )
        read_only_fields = fields


class LogLineSerializer(serializers.Serializer[Any]):
    timestamp = serializers.CharField()
    level = serializers.CharField()
    message = serializers.CharField()


class ReportSerializer(serializers.Serializer[Any]):
    """A task with everything that is known about it."""

    task = TaskSerializer()
    metrics = MetricsSerializer()
    tokens = UsageSerializer(allow_null=True)
    prompt = serializers.CharField(allow_null=True)
    messages = NewMessageSerializer(many=True, allow_null=True)
    params = serializers.DictField()
    attempts = AttemptSerializer(many=True)
    webhook_deliveries = WebhookDeliverySerializer(many=True)
    logs = LogLineSerializer(many=True)
