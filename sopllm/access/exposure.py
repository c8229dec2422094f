"""No service that other machines reach while nobody has a key."""

import asyncio
import logging
import signal

import psutil
from django.db import Error as DatabaseError

from inference.api.deferred_response import InThread
from sopllm.access.identity import is_loopback
from sopllm.access.models import ApiKey

logger = logging.getLogger(__name__)

NO_KEY = (
    "The service would be reachable from other machines, and there is no API key: make one with "
    "`python manage.py create_api_key OWNER --scopes tasks,monitor,admin`, or listen on 127.0.0.1."
)
# Servers listen soon after they have started the application, if not before.
_LOOK_FOR_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 0.1


def has_keys() -> bool:
    """Whether any key lets anybody in; False without a database that knows keys."""
    try:
        return ApiKey.objects.active().exists()
    except DatabaseError:
        return False


async def stop_if_exposed(in_thread: InThread) -> None:
    """Stop this web process, whatever server started it, where strangers reach it without keys."""
    for _ in range(round(_LOOK_FOR_SECONDS / _LOOK_EVERY_SECONDS)):
        if hosts := await asyncio.to_thread(_listening_hosts):
            break
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
    if all(map(is_loopback, hosts)) or await in_thread(has_keys):
        return
    logger.critical("%s", NO_KEY)
    signal.raise_signal(signal.SIGTERM)


def _listening_hosts() -> list[str]:
    """The addresses on which this process listens, also by sockets that it has inherited."""
    sockets = psutil.Process().net_connections(kind="tcp")
    return [each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN]
