"""One thread a process renews its leases, and learns of cancels."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection

from inference.models.claimable import Claimable
from monitoring.hardware import worker_identity

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.2


@dataclass(slots=True)
class HeldRow:
    """A row that this process has claimed. The renewer sets the flags, whoever runs it reads them.

    `lost`: another worker may have it, or the row is deleted.
    """

    row: Claimable
    cancel_requested: bool = False
    lost: bool = False

    @property
    def attempt(self) -> int:
        return self.row.attempt


# By kind, key and attempt: a lost one may still run here when this process claims its row again.
_held: dict[tuple[type[Claimable], Any, int], HeldRow] = {}
_changed = threading.Condition()
_thread: threading.Thread | None = None


def hold(held: HeldRow) -> None:
    """Renew the lease, and keep its flags up to date, until it is released."""
    global _thread
    with _changed:
        _held[_key(held)] = held
        if _thread is None or not _thread.is_alive():  # the first, or the first after a fork
            _thread = threading.Thread(target=_run, name="lease-renewer", daemon=True)
            _thread.start()
        _changed.notify()


def release(held: HeldRow) -> None:
    """Stop renewing the lease. May be called twice."""
    with _changed:
        _held.pop(_key(held), None)


def renew(rows: Iterable[HeldRow]) -> None:
    """Prolong the leases, in one UPDATE for each kind."""
    for kind, of_kind in _by_kind(rows).items():
        pks = [held.row.pk for held in of_kind]
        kind._default_manager.filter(pk__in=pks).renew(worker_identity.current())


def refresh(rows: Iterable[HeldRow]) -> None:
    """Update the flags of rows: whether a cancel was asked for, or the lease was lost."""
    for kind, of_kind in _by_kind(rows).items():
        found = kind._default_manager.all().held_by(worker_identity.current())
        for held in of_kind:
            attempt, cancel_requested = found.get(held.row.pk, (None, False))
            held.lost = attempt != held.attempt
            held.cancel_requested = held.cancel_requested or cancel_requested


def _key(held: HeldRow) -> tuple[type[Claimable], Any, int]:
    return (type(held.row), held.row.pk, held.attempt)


def _by_kind(rows: Iterable[HeldRow]) -> dict[Any, list[HeldRow]]:
    kinds = defaultdict(list)
    for held in rows:
        kinds[type(held.row)].append(held)
    return kinds


def _run() -> None:
    renewed_at, is_away = time.monotonic(), False
    while True:
        with _changed:
            if not _held:
                _changed.wait()
                renewed_at = time.monotonic()
        time.sleep(_REFRESH_SECONDS)
        with _changed:
            rows = list(_held.values())
        if not rows:
            continue
        try:
            refresh(rows)
            if time.monotonic() - renewed_at >= settings.LEASE_SECONDS / 3:
                renew(rows)
                renewed_at = time.monotonic()
            is_away = False
        except DatabaseError as exc:
            if not is_away:
                logger.warning("Leases are not renewed until the database answers: %s", exc)
            is_away = True
            connection.close()  # Django reopens broken ones between requests only
