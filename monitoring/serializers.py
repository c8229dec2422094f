"""The answers of the monitoring routes, as the API's description shows them."""

from rest_framework import serializers

from monitoring.events.events import EventType


class ComponentSerializer(serializers.Serializer[object]):
    """`queues`: live workers of each queue, of the component `workers` alone."""

    status = serializers.ChoiceField(["up", "degraded", "down"])
    message = serializers.CharField()
    response_time_ms = serializers.FloatField()
    queues = serializers.DictField(child=serializers.IntegerField(), required=False)


class ResourcesSerializer(serializers.Serializer[object]):
    """MiB; of the disk that VAR_DIR lies on, and of the machine of the web process."""

    disk_total_mb = serializers.IntegerField()
    disk_used_mb = serializers.IntegerField()
    disk_free_mb = serializers.IntegerField()
    disk_used_percent = serializers.FloatField()
    memory_total_mb = serializers.IntegerField()
    memory_used_mb = serializers.IntegerField()
    memory_free_mb = serializers.IntegerField()
    memory_used_percent = serializers.FloatField()


class GPUSummarySerializer(serializers.Serializer[object]):
    available = serializers.BooleanField()
    num_gpus = serializers.IntegerField()
    total_mb = serializers.IntegerField(allow_null=True)
    used_mb = serializers.IntegerField(allow_null=True)


class HealthSerializer(serializers.Serializer[object]):
    """`components`: database, redis, broker, workers, channel_layer, langfuse."""

    status = serializers.ChoiceField(["healthy", "degraded", "unhealthy"])
    version = serializers.CharField()
    uptime_seconds = serializers.FloatField()
    timestamp = serializers.DateTimeField()
    components = serializers.DictField(child=ComponentSerializer())
    resources = ResourcesSerializer(allow_null=True)
    gpu = GPUSummarySerializer()


class GPUSerializer(serializers.Serializer[object]):
    """null: the GPU does not tell."""

    index = serializers.IntegerField()
    node = serializers.CharField()
    name = serializers.CharField(allow_null=True)
    driver_version = serializers.CharField(allow_null=True)
    cuda_version = serializers.CharField(allow_null=True)
    compute_capability = serializers.CharField(allow_null=True)
    total_mb = serializers.IntegerField(allow_null=True)
    used_mb = serializers.IntegerField(allow_null=True)
    free_mb = serializers.IntegerField(allow_null=True)
    used_percent = serializers.FloatField(allow_null=True)
    utilization_percent = serializers.IntegerField(allow_null=True)
    temperature_c = serializers.IntegerField(allow_null=True)
    power_w = serializers.FloatField(allow_null=True)
    is_locked = serializers.BooleanField()
    current_task_id = serializers.CharField(allow_null=True)
    loaded_models = serializers.ListField(child=serializers.CharField())


class GPUStatsSerializer(serializers.Serializer[object]):
    available = serializers.BooleanField()
    gpus = GPUSerializer(many=True)


class LogEntrySerializer(serializers.Serializer[object]):
    id = serializers.CharField()
    timestamp = serializers.DateTimeField()
    level = serializers.CharField()
    logger = serializers.CharField()
    message = serializers.CharField()
    task_id = serializers.CharField(allow_null=True)
    process = serializers.CharField()


class LogPageSerializer(serializers.Serializer[object]):
    """Newest first; `results` is the same list as `logs`."""

    logs = LogEntrySerializer(many=True)
    results = LogEntrySerializer(many=True)
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)


class EventMessageSerializer(serializers.Serializer[object]):
    type = serializers.ChoiceField([str(event_type) for event_type in EventType])
    seq = serializers.IntegerField()
    timestamp = serializers.DateTimeField()
    data = serializers.DictField()  # type: ignore[assignment] # Serializer.data is another


class EventPageSerializer(serializers.Serializer[object]):
    events = EventMessageSerializer(many=True)
    results = EventMessageSerializer(many=True)
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    seq = serializers.IntegerField(help_text="ask for what comes `after` it")
    has_gap = serializers.BooleanField()
