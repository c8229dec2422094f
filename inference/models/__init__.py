"""The rows: tasks with their attempts, batches and files, models and downloads, webhooks."""

from inference.models.attempts import TaskAttempt
from inference.models.batches import Batch, BatchError, BatchTask
from inference.models.costs import NO_COST, Cost
from inference.models.downloads import ModelDownload
from inference.models.files import StoredFile
from inference.models.model_files import FileIdentity, ModelFile, ModelProvenance, Provenance
from inference.models.owner_shares import OwnerShare, owner_turns, queue_positions
from inference.models.registered_models import RegisteredModel, loaded_models
from inference.models.tasks import (
    MAX_PRIORITY,
    NO_USAGE,
    GenerationTask,
    GenerationTaskQuerySet,
    ModelChoice,
    Queue,
    TaskResult,
    Usage,
    milliseconds_between,
    new_task_id,
)
from inference.models.webhook_deliveries import WebhookDelivery
from inference.models.webhook_secrets import WebhookSecret

__all__ = [
    "MAX_PRIORITY",
    "NO_COST",
    "NO_USAGE",
    "Batch",
    "BatchError",
    "BatchTask",
    "Cost",
    "FileIdentity",
    "GenerationTask",
    "GenerationTaskQuerySet",
    "ModelChoice",
    "ModelDownload",
    "ModelFile",
    "ModelProvenance",
    "OwnerShare",
    "Provenance",
    "Queue",
    "RegisteredModel",
    "StoredFile",
    "TaskAttempt",
    "TaskResult",
    "Usage",
    "WebhookDelivery",
    "WebhookSecret",
    "loaded_models",
    "milliseconds_between",
    "new_task_id",
    "owner_turns",
    "queue_positions",
]
