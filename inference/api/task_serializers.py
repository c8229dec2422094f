"""What the API takes and gives: one serializer a shape."""

from functools import cache
from typing import Any

from rest_framework import serializers

from conversations.serializers import MAX_CONTENT_CHARS, NewMessageSerializer
from inference.api.provenance import ProvenanceSerializer
from inference.models import MAX_PRIORITY, TaskAttempt, WebhookDelivery
from inference.registry.configs import SamplingSerializer
from inference.task_body import TaskSerializer, UsageSerializer
from monitoring.api.metadata import MetadataField
from monitoring.api.strict_serializer import StrictSerializer

MAX_BATCH = 1000
MAX_KEY_LENGTH = 255
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024


class ProviderConfigSerializer(StrictSerializer):
    """Intake style: names the model."""

    model_name = serializers.CharField()


class LogitBiasField(serializers.DictField):
    """By the id of a token, what is added to its logit: -100 to 100."""

    child = serializers.FloatField(min_value=-100, max_value=100)

    def to_internal_value(self, data: Any) -> dict[str, float]:
        biases: dict[str, float] = super().to_internal_value(data)
        if len(biases) > MAX_BIASES:
            raise serializers.ValidationError(f"Give up to {MAX_BIASES} tokens.")
        if not all(token.isascii() and token.isdecimal() and len(token) < 10 for token in biases):
            raise serializers.ValidationError("Its names are the numbers of tokens.")
        return biases


class TaskSubmissionSerializer(SamplingSerializer):
    """A new task; `submission.py` says what the fields mean together."""

    model = serializers.CharField(required=False, max_length=100)
    prompt = serializers.CharField(
        required=False, trim_whitespace=False, max_length=MAX_CONTENT_CHARS
    )
    messages = NewMessageSerializer(many=True, required=False, allow_empty=False)
    conversation_id = serializers.CharField(required=False, allow_null=True, max_length=37)
    save_to_conversation = serializers.BooleanField(default=True)
    prompt_cache_key = serializers.CharField(
        required=False,
        allow_null=True,
        allow_blank=True,
        max_length=512,
        help_text="Of tasks whose prompts begin alike: the beginning is kept, and read once.",
    )
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
        help_text=(
            '{"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema"}}, '
            '{"type": "regex", "regex"}, {"type": "lark", "lark"} or {"type": "choice", "choices"}.'
        ),
    )
    grammar = serializers.CharField(required=False, allow_null=True, trim_whitespace=False)
    tools = serializers.JSONField(
        required=False,
        allow_null=True,
        help_text='[{"type": "function", "function": {"name", "description", "parameters"}}]',
    )
    tool_choice = serializers.JSONField(
        required=False,
        allow_null=True,
        help_text='none, auto, required or {"type": "function", "function": {"name"}}.',
    )
    parallel_tool_calls = serializers.BooleanField(required=False, allow_null=True)
    logprobs = serializers.BooleanField(required=False, allow_null=True)
    top_logprobs = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=MAX_TOP_LOGPROBS
    )
    logit_bias = LogitBiasField(required=False, allow_null=True)
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
    provenance = serializers.DictField(
        required=False, allow_null=True, help_text="Of an exported task; without effect by itself."
    )
    check_provenance = serializers.BooleanField(
        required=False, help_text="Refuse the task unless the model's file is the same."
    )


@cache
def submission_validator() -> TaskSubmissionSerializer:
    """One instance for all submissions: validating does not change it, building it is slow."""
    return TaskSubmissionSerializer()


class AttemptSerializer(serializers.ModelSerializer[TaskAttempt]):
    model = serializers.CharField(source="model_name")
    outcome = serializers.ChoiceField(choices=["running", *TaskAttempt.Outcome.values])
    ended_at = serializers.DateTimeField(allow_null=True, help_text="Null while it is running.")
    cost_usd = serializers.FloatField(
        allow_null=True, help_text="Null for local models, and where nobody knows the price."
    )
    endpoint = serializers.CharField(
        allow_null=True, help_text="Of a cloud model: which one was asked last."
    )

    class Meta:
        model = TaskAttempt
        fields = (
            *("number", "worker", "model", "started_at", "ended_at", "outcome"),
            *("error_code", "error", "gpu_seconds", "energy_joules", "cost_usd", "endpoint"),
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
    num_attempts = serializers.IntegerField(source="attempt")
    next_attempt_at = serializers.DateTimeField(allow_null=True)
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


class SwapBoundsSerializer(serializers.Serializer[Any]):
    wait_past_turn_seconds = serializers.FloatField(
        help_text="So long at most, tasks of the model that runs are taken before it."
    )
    load_share = serializers.FloatField(
        allow_null=True,
        help_text="So much of the time at most goes into loading; null unless it was loaded.",
    )


class ReportSerializer(serializers.Serializer[Any]):
    """A task with everything that is known about it."""

    task = TaskSerializer()
    metrics = MetricsSerializer()
    gpu_seconds = serializers.FloatField(allow_null=True)
    energy_joules = serializers.FloatField(allow_null=True)
    cost_usd = serializers.FloatField(allow_null=True, help_text="The sum of the attempts.")
    swap_bounds = SwapBoundsSerializer(allow_null=True)
    tokens = UsageSerializer(allow_null=True)
    prompt = serializers.CharField(allow_null=True)
    messages = NewMessageSerializer(many=True, allow_null=True)
    params = serializers.DictField()
    provenance = ProvenanceSerializer(allow_null=True)
    attempts = AttemptSerializer(many=True)
    webhook_deliveries = WebhookDeliverySerializer(many=True)
    logs = LogLineSerializer(many=True)
