"""The life of a task: submit, claim, renew, finish, cancel, sweep; nobody else changes a status.

Every change is a compare-and-set on the row; every write of a worker names its attempt, so a worker
that lost its lease can harm nothing.
"""

from inference.lifecycle.admission import (
    ConversationGoneError,
    IdempotencyConflictError,
    QueueFullError,
    first_with_key,
    submit,
)
from inference.lifecycle.ending import (
    Timings,
    cancel,
    complete,
    delete,
    fail,
    finish_cancelled,
    purge,
)
from inference.lifecycle.leases import (
    Lease,
    begin_again,
    claim,
    claim_most_urgent,
    claim_rider,
    refresh,
    renew,
)
from inference.lifecycle.repair import sweep

__all__ = [
    "ConversationGoneError",
    "IdempotencyConflictError",
    "Lease",
    "QueueFullError",
    "Timings",
    "begin_again",
    "cancel",
    "claim",
    "claim_most_urgent",
    "claim_rider",
    "complete",
    "delete",
    "fail",
    "finish_cancelled",
    "first_with_key",
    "purge",
    "refresh",
    "renew",
    "submit",
    "sweep",
]
