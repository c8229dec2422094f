"""Rows that a worker claims."""

from typing import Any, TypeVar

from django.db.models import QuerySet

from monitoring.hardware import worker_identity

Rows = TypeVar("Rows", bound="QuerySet[Any]")


def of_gone_workers(rows: Rows) -> Rows:
    """Those of the rows whose `worker` was a process of this host that has ended."""
    held = set(rows.exclude(worker="").values_list("worker", flat=True))
    return rows.filter(worker__in=[worker for worker in held if worker_identity.is_gone(worker)])
