"""Which tasks are traced, and under which id; known without the SDK, where tasks are submitted."""

import hashlib

from django.conf import settings


def is_configured() -> bool:
    """Whether there are keys to send traces with."""
    return bool(settings.LANGFUSE_PUBLIC_KEY and settings.LANGFUSE_SECRET_KEY)


def trace_id_of(task_id: str) -> str | None:
    """What `Langfuse.create_trace_id(seed=task_id)` gives; None when the task is not traced."""
    if not is_configured():
        return None
    trace_id = hashlib.sha256(task_id.encode()).hexdigest()[:32]
    # As the samplers of OpenTelemetry do: all attempts of a task are in, or none.
    is_sampled = int(trace_id[16:], 16) < settings.LANGFUSE_SAMPLE_RATE * 2**64
    return trace_id if is_sampled else None
