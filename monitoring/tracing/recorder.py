"""Records generations for Langfuse; no task waits for it.

The outbox thread makes spans of them, which the SDK's own thread sends.
"""

import os
import threading
import time
from typing import TYPE_CHECKING

from django.conf import settings

from monitoring.redis import outbox
from monitoring.redis.outbox import Batch, Sink
from monitoring.redis.per_process import PerProcess
from monitoring.tracing.generation import Generation
from monitoring.tracing.trace_ids import is_configured

if TYPE_CHECKING:
    from monitoring.tracing.langfuse_spans import LangfuseSpans

FLUSH_SECONDS = 1.5

# A fork waits while the SDK is imported or at work: a child would inherit its locks as they are,
# without the thread that releases them.
_sdk_at_work = threading.Lock()
os.register_at_fork(
    before=_sdk_at_work.acquire,
    after_in_parent=_sdk_at_work.release,
    after_in_child=_sdk_at_work.release,
)


def record(generation: Generation) -> None:
    """Have a generation sent within about a second; it is lost when Langfuse is away."""
    if is_configured():
        outbox.put(_SINK, generation)


def flush(timeout_seconds: float = FLUSH_SECONDS) -> None:
    """Wait until all that was recorded here is sent, or was tried, or the time is over."""
    give_up_at = time.monotonic() + timeout_seconds
    outbox.flush(timeout_seconds)
    if _spans.is_made:
        # The SDK's own flush has no time limit.
        flushing = threading.Thread(target=_spans().flush, name="traces-flush", daemon=True)
        flushing.start()
        flushing.join(max(0.0, give_up_at - time.monotonic()))


@PerProcess
def _spans() -> "LangfuseSpans":
    # Takes a second to import, which only the outbox thread waits for; a web process never does.
    from monitoring.tracing.langfuse_spans import LangfuseSpans

    return LangfuseSpans(
        settings.LANGFUSE_HOST, settings.LANGFUSE_PUBLIC_KEY, settings.LANGFUSE_SECRET_KEY
    )


def _send(batch: Batch[Generation]) -> None:
    with _sdk_at_work:
        for generation in batch.items:
            _spans().add(generation)


def _size(generation: Generation) -> int:
    """About how many bytes its texts have."""
    texts = [generation.output, *(message.get("content") for message in generation.messages)]
    return sum(len(str(text)) for text in texts)


_SINK = Sink(name="Traces", send=_send, gather_seconds=0.2, max_batch=50, size=_size)
