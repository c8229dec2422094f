"""The database's clock: the one that all hosts share, however wrong their own are.

Statements have it as `Now()`. This is for what is compared with such times in Python.
"""

import time
from datetime import UTC, datetime

from django.db import connection
from django.utils import timezone

_READ_AGAIN_SECONDS = 5.0

# When it was read last, and how far it was ahead then, by a clock that nobody can set.
_read_at, _ahead_seconds = float("-inf"), 0.0


def now() -> datetime:
    """What it shows, but for the time that asking takes; it is asked every few seconds.

    Raises django.db.Error.
    """
    global _read_at, _ahead_seconds
    if connection.vendor == "sqlite":
        return timezone.now()  # it is this host's
    steady = time.clock_gettime(time.CLOCK_BOOTTIME)
    if steady - _read_at > _READ_AGAIN_SECONDS:
        with connection.cursor() as cursor:
            cursor.execute("SELECT EXTRACT(EPOCH FROM STATEMENT_TIMESTAMP())")
            [epoch] = cursor.fetchone()
        _read_at, _ahead_seconds = steady, float(epoch) - steady
    return datetime.fromtimestamp(steady + _ahead_seconds, UTC)
