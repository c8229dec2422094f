"""The ends of tasks, load requests and embeddings, announced in one short Redis stream.

Each is announced by a key: the id of a task, or a text that is no id of a task. An announcement may
be lost: clients that wait also read the row, or the answer, every few seconds.
"""

import logging

import redis

from monitoring.redis.client import RedisClient, client

logger = logging.getLogger(__name__)

STREAM = "ends"
_MAX_ENDS = 1000


def announce(key: str, pipe: RedisClient = None) -> None:
    """Wake everyone who waits for this; with the other commands of a pipeline. Never fails."""
    if pipe is None:
        pipe = client().pipeline(transaction=False)
    put_into(pipe, key)
    try:
        pipe.execute()
    except redis.RedisError as exc:
        logger.warning("The end of %s was not announced: %s", key, exc)


def put_into(pipe: RedisClient, key: str) -> None:
    """Queue the command that announces an end."""
    pipe.xadd(STREAM, {"key": key}, maxlen=_MAX_ENDS, approximate=True)
