"""Keeps the leases of this process alive, and learns of cancels, in one thread for all of them."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection

from inference import lifecycle
from inference.lifecycle import Lease

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.2

# By attempt: a lost one may still be running here when this process claims its task again.
_leases: dict[tuple[str, int], Lease] = {}
_changed = threading.Condition()
_thread: threading.Thread | None = None


@contextmanager
def hold(lease: Lease) -> Iterator[None]:
    """Renew the lease while the block runs, and keep its flags up to date."""
    global _thread
    key = (lease.task.pk, lease.attempt)
    with _changed:
        _leases[key] = lease
        if _thread is None or not _thread.is_alive():  # the first, or the first after a fork
            _thread = threading.Thread(target=_keep, name="lease-keeper", daemon=True)
            _thread.start()
        _changed.notify()
    try:
        yield
    finally:
        with _changed:
            _leases.pop(key, None)


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
            lifecycle.refresh(leases)
            if time.monotonic() - renewed_at >= settings.LEASE_SECONDS / 3:
                lifecycle.renew(leases)
                renewed_at = time.monotonic()
        except DatabaseError as exc:
            logger.warning("Leases not renewed, the database does not answer: %s", exc)
            connection.close()  # nobody else opens a broken one anew in this thread
