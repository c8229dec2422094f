"""What tasks, downloads, batches and webhook deliveries have in common: a worker claims the row.

A row that waits has the time from when on it is due, one that a worker holds the end of its lease.
Each claim counts `attempt` up, and every write of a worker names the attempt that it is part of: a
write that changes no row means that the lease was lost.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar, Self, TypeVar

from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from monitoring.hardware import worker_identity

# The fields of a row that no worker holds.
UNHELD: dict[str, Any] = {"worker": "", "lease_until": None}

Row = TypeVar("Row", bound="Claimable")


class ClaimableQuerySet(models.QuerySet[Row]):
    """Claims of one kind of rows."""

    def due(self) -> Self:
        """Those that wait, and whose time has come."""
        return self.filter(due_at__lte=Now())

    def claim_next(self, worker: str) -> Row | None:
        """Take the due row that goes first; None when there is none."""
        in_order = self.due().order_by(*self.model.claim_order)
        while (pk := in_order.values_list("pk", flat=True).first()) is not None:
            with transaction.atomic():
                is_mine = (
                    self.due()
                    .filter(pk=pk)
                    .update(
                        attempt=F("attempt") + 1,
                        worker=worker,
                        lease_until=self._lease_end(),
                        due_at=None,
                        **self.model.claimed_fields,
                    )
                )
            if is_mine:  # otherwise another process got there first
                return self.get(pk=pk)
        return None

    def renew(self, worker: str) -> int:
        """Prolong the leases that the worker still has; returns how many."""
        held = self.filter(worker=worker, lease_until__isnull=False)
        return held.update(lease_until=self._lease_end())

    def held_by(self, worker: str) -> dict[Any, tuple[int, bool]]:
        """By key: the attempt that the worker is at, and whether a cancel was asked for."""
        held = self.filter(worker=worker, lease_until__isnull=False)
        return {pk: (attempt, False) for pk, attempt in held.values_list("pk", "attempt")}

    def lost(self, *, is_clock_steady: bool = True) -> Self:
        """Those whose lease has run out, if that can be told, or whose worker has ended here."""
        held = self.filter(lease_until__isnull=False)
        workers = set(held.values_list("worker", flat=True))
        gone = [worker for worker in workers if worker_identity.is_gone(worker)]
        has_run_out = Q(lease_until__lte=Now()) if is_clock_steady else Q()
        return held.filter(has_run_out | Q(worker__in=gone))

    def take_back(self, *, is_clock_steady: bool = True) -> int:
        """Make those due that are lost; returns how many."""
        lost = self.lost(is_clock_steady=is_clock_steady)
        return lost.update(**UNHELD, due_at=Now(), **self.model.waiting_fields)

    def _lease_end(self) -> Any:
        return Now() + timedelta(seconds=self.model.lease_seconds or settings.LEASE_SECONDS)


class Claimable(models.Model):
    """A row that workers claim, see above. `attempt` counts from 1, of a row never claimed it is 0.

    `worker` is the identity of the process that holds it, or that held it last. A kind says what
    goes first, which fields a claim and its loss change besides, and how long a lease lasts that
    nobody renews.
    """

    claim_order: ClassVar[Sequence[str]] = ("due_at",)
    claimed_fields: ClassVar[dict[str, Any]] = {}
    waiting_fields: ClassVar[dict[str, Any]] = {}
    lease_seconds: ClassVar[float | None] = None

    attempt = models.PositiveIntegerField(default=0)
    worker = models.CharField(max_length=255, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    due_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        abstract = True
        indexes = [
            models.Index(
                fields=["lease_until"],
                name="%(class)s_lease",
                condition=Q(lease_until__isnull=False),
            )
        ]
