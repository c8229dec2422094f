"""Keeps the leases of this process alive, and learns of cancels, in one thread for all of them."""

import logging
import threading
import time

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection

from inference.lifecycle import claim
from inference.lifecycle.claim import Lease

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.2

# By attempt: a lost one may still be running here when this process claims its task again.
_leases: dict[tuple[str, int], Lease] = {}
_changed = threading.Condition()
_thread: threading.Thread | None = None


def hold(lease: Lease) -> None:
    """Renew the lease, and keep its flags up to date, until it is released."""
    global _thread
    with _changed:
        _leases[_key(lease)] = lease
        if _thread is None or not _thread.is_alive():  # the first, or the first after a fork
            _thread = threading.Thread(target=_keep, name="lease-keeper", daemon=True)
            _thread.start()
        _changed.notify()


def release(lease: Lease) -> None:
    """Leave the lease to itself. Can be called twice."""
    with _changed:
        _leases.pop(_key(lease), None)


def _key(lease: Lease) -> tuple[str, int]:
    return (lease.task.pk, lease.attempt)


def _keep() -> None:
    renewed_at = time.monotonic()
    while True:
        with _changed:
            if not _leases:
                _changed.wait()
                renewed_at = time.monotonic()
        time.sleep(_REFRESH_SECONDS)
        with _changed:
            leases = list(_leases.values())
        if not leases:
            continue
        try:
            claim.refresh(leases)
            if time.monotonic() - renewed_at >= settings.LEASE_SECONDS / 3:
                claim.renew(leases)
                renewed_at = time.monotonic()
        except DatabaseError as exc:
            logger.warning("Leases not renewed, the database does not answer: %s", exc)
            connection.close()  # nobody else opens a broken one anew in this thread
