"""Is the process alive, can it do its work: for orchestrators."""

from typing import Any

import redis
from django.db import Error as DatabaseError
from django.db import connection
from django.http import HttpRequest, JsonResponse

from monitoring import workers
from monitoring.redis_client import client

QUEUES = ["gpu", "api"]


def healthz(request: HttpRequest) -> JsonResponse:
    """200 while the process lives."""
    return JsonResponse({"status": "alive"})


def readyz(request: HttpRequest) -> JsonResponse:
    """200 when tasks can be accepted: the database answers. The rest is told beside it.

    Redis and workers may be away: tasks are kept meanwhile, and run when they are back.
    """
    database = _database_is_up()
    body: dict[str, Any] = {
        "status": "ready" if database else "unready",
        "components": {"database": _word(database), **_redis_and_workers()},
    }
    return JsonResponse(body, status=200 if database else 503)


def _database_is_up() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return False
    return True


def _redis_and_workers() -> dict[str, Any]:
    try:
        client().ping()
        return {"redis": "up", "workers": workers.count(QUEUES)}
    except redis.RedisError:
        return {"redis": "down", "workers": dict.fromkeys(QUEUES, 0)}


def _word(is_up: bool) -> str:
    return "up" if is_up else "down"
