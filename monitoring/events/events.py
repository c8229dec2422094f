"""The events that clients can subscribe to: the names, the payloads, and one `publish`.

Events are logged and numbered (`log`), then sent to the web processes as messages of a Channels
group, see `feed`. Transient events are only sent: each is superseded by the next one of its type.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, NotRequired, TypedDict, cast

from monitoring.events import publisher
from monitoring.events.log import LoggedEvent

# The owner of what the scope `monitor` alone sees: no principal has it.
SERVICE = ""

# ISO 8601 in UTC.
Timestamp = Annotated[str, "date-time"]


class EventType(StrEnum):
    """What can be subscribed to on the WebSocket."""

    TASK_QUEUED = "task.queued"
    TASK_STARTED = "task.started"
    TASK_PROGRESS = "task.progress"
    TASK_COMPLETED = "task.completed"
    TASK_FAILED = "task.failed"
    TASK_CANCELLED = "task.cancelled"
    MODEL_LOADED = "model.loaded"
    MODEL_UNLOADED = "model.unloaded"
    MODEL_DOWNLOAD_PROGRESS = "model.download_progress"
    GPU_STATS = "gpu_stats"
    QUEUE_STATS = "queue_stats"
    LOG = "log"


TRANSIENT = frozenset(
    {
        EventType.TASK_PROGRESS,
        EventType.MODEL_DOWNLOAD_PROGRESS,
        EventType.GPU_STATS,
        EventType.QUEUE_STATS,
        EventType.LOG,
    }
)

# What the scope `tasks` opens, as far as it is one's own or everybody's; `monitor` opens all.
OF_OWNERS = frozenset(
    {
        EventType.TASK_QUEUED,
        EventType.TASK_STARTED,
        EventType.TASK_PROGRESS,
        EventType.TASK_COMPLETED,
        EventType.TASK_FAILED,
        EventType.TASK_CANCELLED,
        EventType.MODEL_LOADED,
        EventType.MODEL_UNLOADED,
        EventType.MODEL_DOWNLOAD_PROGRESS,
        EventType.QUEUE_STATS,
        EventType.LOG,
    }
)


class EtaSeconds(TypedDict):
    """In how many seconds a task ends: with these probabilities not later."""

    p10: float
    p50: float
    p90: float


class Estimated(TypedDict):
    """When a task starts and ends (medians), and in how many seconds; null while nobody knows."""

    estimated_start_at: Timestamp | None
    estimated_finish_at: Timestamp | None
    eta_seconds: EtaSeconds | None


class TaskQueued(Estimated):
    """A task was accepted, or given back by a lost worker; `attempt` counts those before."""

    task_id: str
    model: str
    queue: str
    priority: float
    attempt: int


class TaskStarted(Estimated):
    task_id: str
    model: str
    attempt: int
    worker: str
    queue_wait_ms: float | None


class TaskProgress(TypedDict):
    """A preview; `partial_text` is the end of the text so far."""

    task_id: str
    attempt: int
    tokens_generated: int
    partial_text: str


class TaskEnded(TypedDict):
    """Of `task.completed`, `task.failed` and `task.cancelled`; null for what was never reached.

    Costs are those of all attempts. Counts of predictions are absent where nothing was drafted.
    """

    task_id: str
    model: str
    attempt: int
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    accepted_prediction_tokens: NotRequired[int]
    rejected_prediction_tokens: NotRequired[int]
    queue_wait_ms: float | None
    ttft_ms: float | None
    inference_ms: float | None
    total_ms: float | None
    error: str | None
    error_code: str | None
    gpu_seconds: float | None
    energy_joules: float | None
    cost_usd: float | None


class ModelLoaded(TypedDict):
    model: str
    worker: str
    load_ms: float


class ModelUnloaded(TypedDict):
    model: str
    worker: str


class ModelDownloadProgress(TypedDict):
    """At most twice a second, and at the end; `total_bytes` is null until the hub has told it."""

    model: str
    status: str
    downloaded_bytes: int
    total_bytes: int | None
    bytes_per_second: float | None


EventData = (
    TaskQueued
    | TaskStarted
    | TaskProgress
    | TaskEnded
    | ModelLoaded
    | ModelUnloaded
    | ModelDownloadProgress
)


def publish(
    event_type: EventType,
    data: EventData | Mapping[str, Any],
    owner: str | None,
    once: str = "",
) -> None:
    """Publish an event to its owner and the scope `monitor`; None: to everyone. Never blocks.

    The owner is SERVICE for what is nobody's, such as a log line of no task.
    While Redis is away the last 10,000 logged events of a process are kept back. `once` is a key of
    which clients hear one event only, though several processes may tell it.
    """
    event = LoggedEvent(event_type, now(), cast(dict[str, Any], data), owner)
    publisher.put(event, is_logged=event_type not in TRANSIENT, once=once)


def now() -> Timestamp:
    """The time of an event, ISO 8601 in UTC."""
    return iso(datetime.now(UTC))


def iso(moment: datetime) -> Timestamp:
    """A time as the API writes it: ISO 8601 in UTC, with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
