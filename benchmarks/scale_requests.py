"""What the process of a database does for `benchmarks.scale`: each public function, on its behalf.

Import it once Django is set up.
"""

import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from rest_framework.test import APIClient

from benchmarks import scale_rows
from benchmarks.running_service import wait_for
from inference.api.submission import build_task
from inference.api.task_serializers import submission_validator
from inference.lifecycle import claim, finish, submit, sweep
from inference.lifecycle.claim import Lease
from inference.lifecycle.finish import Timings
from inference.models import (
    NO_USAGE,
    GenerationTask,
    Queue,
    RegisteredModel,
    TaskResult,
    WebhookDelivery,
)
from monitoring.api.principal import ANY_SCOPE, Principal, Scope
from monitoring.hardware import worker_identity
from monitoring.metrics import stats
from monitoring.models import EndedTask
from monitoring.redis import outbox
from monitoring.redis.client import client as redis_client
from sopllm import processes
from sopllm.supervisor import child_set_up

OWNER = Principal(name="owner-1", owner="owner-1", scopes=frozenset({Scope.TASKS}))
OPERATOR = Principal(name="operator", owner="operator", scopes=ANY_SCOPE)
STAFF = Principal(name="staff", owner="staff", scopes=ANY_SCOPE, is_staff=True)
_BODY = {"model": "echo", "prompt": "Some words.", "max_tokens": 8}
_NUM_REPEATS, _ENOUGH_MS = 3, 1000
_PAGE = 5  # there are as many in the small database too
_OFFSET = 4000
_ANSWER_SECONDS = 0.1
_MIDDLE = timedelta(hours=12)

_leases: list[Lease] = []


def start() -> None:
    """A Valkey that ends with this process."""
    subprocess.Popen(
        processes.valkey().command,
        stdout=subprocess.DEVNULL,
        preexec_fn=child_set_up(0),  # noqa: PLW1509 - it takes no locks
    )
    wait_for(_answers)


def _answers() -> bool:
    try:
        return bool(redis_client().ping())
    except redis.RedisError:
        return False


def set_up() -> None:
    call_command("migrate", verbosity=0, interactive=False)
    RegisteredModel.objects.create(name="echo", provider="echo")
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION pg_stat_statements")


def fill(num_ended: int, num_pending: int) -> None:
    task = new_task(webhook_url=None)
    complete(claimed(task))
    task.refresh_from_db()
    scale_rows.fill(task, num_ended, num_pending)


def names() -> list[str]:
    return list(_requests())


def measure(what: str) -> list[float]:
    """Milliseconds of some calls."""
    call = _requests()[what]
    times: list[float] = []
    while len(times) < _NUM_REPEATS and sum(times) < _ENOUGH_MS:
        for key in redis_client().scan_iter("cache:*"):
            redis_client().delete(key)
        prepared = call()
        started = time.perf_counter()
        prepared()
        times.append(1000 * (time.perf_counter() - started))
        outbox.flush()
    return times


def submissions(num: int) -> list[float]:
    """Milliseconds of each."""
    times = []
    for _ in range(num):
        started = time.perf_counter()
        _client(OWNER).post("/api/v1/tasks", _BODY, format="json")
        times.append(1000 * (time.perf_counter() - started))
    return times


def expire(num: int) -> None:
    """Have so many tasks, webhooks and statistics be past their time."""
    past = timezone.now() - timedelta(days=30)
    tasks = GenerationTask.objects.filter(expires_at__isnull=False).values("pk")[:num]
    GenerationTask.objects.filter(pk__in=tasks).update(expires_at=past)
    hooks = WebhookDelivery.objects.values("pk")[:num]
    WebhookDelivery.objects.filter(pk__in=hooks).update(expires_at=past)
    EndedTask.objects.filter(pk__in=EndedTask.objects.values("pk")[:num]).update(ended_at=past)


def purge() -> dict[str, Any]:
    """Each batch, which is a transaction, in milliseconds."""
    times, num_rows, started = [], 0, time.perf_counter()
    for delete in (finish.purge, EndedTask.objects.purge, WebhookDelivery.objects.purge):
        num = 1
        while num:
            begun_at = time.perf_counter()
            num = delete()
            num_rows += num
            times.append(1000 * (time.perf_counter() - begun_at))
    return {"rows": num_rows, "seconds": time.perf_counter() - started, "batches_ms": times}


def give_to(num_owners: int) -> None:
    """Divide the pending tasks of the api queue that go first among so many owners."""
    with connection.cursor() as cursor:
        cursor.execute(_GIVE_TO, [num_owners])
        cursor.execute("VACUUM ANALYZE inference_generationtask")


_GIVE_TO = """
    UPDATE inference_generationtask SET owner = 'owner-' || ABS(HASHTEXT(id)) %% %s
    WHERE status = 'pending' AND queue = 'api' AND priority = (
        SELECT MAX(priority) FROM inference_generationtask
        WHERE status = 'pending' AND queue = 'api'
    )
"""


def query(sql: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def redis_calls() -> dict[str, int]:
    """By command."""
    outbox.flush()
    by_name: Any = redis_client().info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in by_name.items()}


def work(num_threads: int, seconds: float) -> dict[str, Any]:
    """Threads that claim tasks, wait, and complete them; the seconds of each claim."""
    until, claims = time.monotonic() + seconds, []
    lock = threading.Lock()

    def run() -> None:
        own: list[float] = []
        while time.monotonic() < until:
            started = time.perf_counter()
            lease = claim.claim_most_urgent(Queue.API)
            own.append(time.perf_counter() - started)
            if lease is None:
                break
            time.sleep(_ANSWER_SECONDS)
            complete(lease)
        with lock:
            claims.extend(own)
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"tasks": len(claims), "claims": claims}


def new_task(owner: str = "owner-1", **fields: Any) -> GenerationTask:
    """Submitted."""
    body = submission_validator().run_validation({**_BODY, **fields})
    [task] = submit.submit([build_task(owner, body, None)])
    return task


def claimed(task: GenerationTask) -> Lease:
    lease = claim.claim(task.pk)
    assert lease is not None
    return lease


def complete(lease: Lease) -> None:
    result = TaskResult(
        text="Some words.",
        finish_reason="stop",
        usage=NO_USAGE,
        model="echo",
        parsed=None,
        extra={},
    )
    assert finish.complete(lease, result, Timings(inference_ms=20.0, ttft_ms=2.0))


@cache
def _client(principal: Principal) -> APIClient:
    api = APIClient(HTTP_HOST="127.0.0.1")
    user: Any = principal
    api.force_authenticate(user)
    return api


@cache
def _requests() -> dict[str, Callable[[], Callable[[], Any]]]:
    """By name, what prepares a call and gives it."""
    middle = (timezone.now() - _MIDDLE).isoformat().replace("+00:00", "Z")
    yesterday = stats.today() - timedelta(days=1)
    conversation = GenerationTask.objects.filter(conversation__isnull=False).first()
    conversation_id = conversation.conversation_id if conversation else f"conv_{'0' * 32}"
    owner = conversation.owner if conversation else "owner-1"
    of_owner = Principal(name=owner, owner=owner, scopes=frozenset({Scope.TASKS}))
    pending = new_task()

    def get(path: str, principal: Principal = OWNER) -> Callable[[], Callable[[], Any]]:
        return lambda: lambda: _checked(_client(principal).get(f"/api/v1{path}"))

    def deep(path: str, principal: Principal) -> str:
        """The same list, from a page in its midst on."""
        page = _client(principal).get(f"/api/v1{path}created_before={middle}&limit=1").json()
        if not page["next"]:
            return f"{path}limit={_PAGE}"
        return f"{path}limit={_PAGE}&cursor={parse_qs(urlsplit(page['next']).query)['cursor'][0]}"

    def claiming(call: Callable[[], Lease | None]) -> Callable[[], Callable[[], None]]:
        """Of a queue that has a task; what was claimed before is completed."""

        def prepare() -> Callable[[], None]:
            while _leases:
                complete(_leases.pop())
            new_task()
            return lambda: _leases.extend(filter(None, [call()]))

        return prepare

    def again(request: Callable[[], Callable[[], Any]]) -> Callable[[], Callable[[], Any]]:
        def prepare() -> Callable[[], Any]:
            request()()
            return request()

        return prepare

    def completing() -> Callable[[], None]:
        lease = claimed(new_task())
        return lambda: complete(lease)

    found = {
        "POST /tasks": lambda: (
            lambda: _checked(_client(OWNER).post("/api/v1/tasks", _BODY, format="json"))
        ),
        "GET /tasks/{id}, pending: its queue_position": get(f"/tasks/{pending.pk}"),
        "the same again within a second": again(get(f"/tasks/{pending.pk}")),
        "POST /tasks, again within a second": again(
            lambda: lambda: _checked(_client(OWNER).post("/api/v1/tasks", _BODY, format="json"))
        ),
        "claim_most_urgent": claiming(lambda: claim.claim_most_urgent(Queue.API)),
        "claim_joining": claiming(
            lambda: claim.claim_joining(Queue.API, "model-1", timezone.now())
        ),
        "complete": completing,
        "held_by (lease renewer)": lambda: (
            lambda: GenerationTask.objects.all().held_by(worker_identity.current())
        ),
        "sweep": lambda: sweep.sweep,
        "GET /monitor/queue, own": get("/monitor/queue"),
        "GET /monitor/queue, all": get("/monitor/queue", OPERATOR),
        "GET /monitor/stats, own": get("/monitor/stats"),
        "GET /monitor/stats, all": get("/monitor/stats", OPERATOR),
        "GET /monitor/stats?date=yesterday, own": get(f"/monitor/stats?date={yesterday}"),
        "GET /monitor/stats?date=yesterday, all": get(f"/monitor/stats?date={yesterday}", OPERATOR),
        "GET /monitor/stats?days=7, own": get("/monitor/stats?days=7"),
        "GET /monitor/stats?days=7, all": get("/monitor/stats?days=7", OPERATOR),
        "GET /monitor/health": get("/monitor/health", OPERATOR),
        "GET /monitor/logs": get("/monitor/logs"),
        "GET /monitor/events": get("/monitor/events"),
        "GET /metrics": lambda: lambda: _checked(_client(OPERATOR).get("/metrics")),
        "GET /keys/me": get("/keys/me"),
        "GET /models": get("/models"),
        "GET /conversations, own": get(f"/conversations?limit={_PAGE}"),
        "GET /conversations, all": get(f"/conversations?limit={_PAGE}", STAFF),
        f"GET /conversations?offset={_OFFSET}, all": get(
            f"/conversations?limit={_PAGE}&offset={_OFFSET}", STAFF
        ),
    }
    filters = {"": "", "model": "model=model-1&", "model=unused": "model=unused&"}
    filters |= {"created_after": f"created_after={middle}&"}
    filters |= {"created_before": f"created_before={middle}&"}
    filters |= {f"status={status}": f"status={status}&" for status in GenerationTask.Status}
    for name, text in filters.items():
        for who, principal in (("own", OWNER), ("all", STAFF)):
            found[f"GET /tasks?{name}, {who}"] = get(f"/tasks?{text}limit={_PAGE}", principal)
    for name in ("", "model", *(f"status={status}" for status in GenerationTask.Status)):
        for who, principal in (("own", OWNER), ("all", STAFF)):
            path = deep(f"/tasks?{filters[name]}", principal)
            found[f"GET /tasks?{name}, deep, {who}"] = get(path, principal)
    found["the first of these again within a second"] = again(get(f"/tasks?limit={_PAGE}"))
    turns = f"/tasks?conversation_id={conversation_id}"
    found["GET /tasks?conversation_id, own"] = get(turns, of_owner)
    messages = f"/conversations/{conversation_id}/messages"
    if conversation and conversation.conversation:
        owner = conversation.conversation.owner
        its_owner = Principal(name=owner, owner=owner, scopes=frozenset({Scope.TASKS}))
        found["GET /conversations/{id}/messages"] = get(messages, its_owner)
    return found


def _checked(response: Any) -> Any:
    assert response.status_code < 300, response.content
    return response
