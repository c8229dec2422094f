"""Counters of the tasks of each model: all processes add to them, and Redis keeps them.

They vanish with Redis, which Prometheus sees as a counter that was reset.
"""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

from monitoring.redis import outbox
from monitoring.redis.client import client
from monitoring.redis.outbox import Batch, Sink

# By model and field. A histogram has a field for each bucket, by its index, and one for the sum.
Increments = dict[tuple[str, str], float]

# The names and buckets of vLLM, in seconds.
QUEUE_TIME = "request_queue_time_seconds"
TTFT = "time_to_first_token_seconds"
ITL = "inter_token_latency_seconds"
TPOT = "time_per_output_token_seconds"
E2E = "e2e_request_latency_seconds"

_OF_A_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_OF_THE_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_OF_A_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
BUCKETS = {
    QUEUE_TIME: _OF_A_REQUEST,
    TTFT: _OF_THE_FIRST_TOKEN,
    ITL: _OF_A_TOKEN,
    TPOT: _OF_A_TOKEN,
    E2E: _OF_A_REQUEST,
}

_KEPT_SECONDS = 30 * 86_400


def observe(into: Increments, model: str, histogram: str, seconds: float) -> None:
    """Put a value into its bucket."""
    bucket = bisect_left(BUCKETS[histogram], seconds)
    _increase(into, (model, f"{histogram}:{bucket}"), 1)
    _increase(into, (model, f"{histogram}:sum"), seconds)


def count(increments: Increments) -> None:
    """Have the counters increased within about a second; later while Redis is away."""
    if increments:
        outbox.put(_SINK, increments)


def _increase(into: Increments, field: tuple[str, str], amount: float) -> None:
    into[field] = into.get(field, 0) + amount


def add(increments: Increments) -> None:
    """Add all or nothing, in one round trip. Raises redis.RedisError."""
    pipe = client().pipeline(transaction=True)
    for (model, field), amount in increments.items():
        pipe.hincrbyfloat(_key(model), field, amount)
    for model in {model for model, _ in increments}:
        pipe.expire(_key(model), _KEPT_SECONDS)
    pipe.execute()


def read(models: Iterable[str]) -> dict[str, dict[str, float]]:
    """The fields of each model. Raises redis.RedisError."""
    names = list(models)
    pipe = client().pipeline(transaction=False)
    for name in names:
        pipe.hgetall(_key(name))
    answers = pipe.execute()
    return {
        name: {field: float(value) for field, value in fields.items()}
        for name, fields in zip(names, answers, strict=True)
    }


def cumulative(fields: dict[str, float], histogram: str) -> list[tuple[str, float]]:
    """The buckets of a histogram as Prometheus has them: up to each bound, the last one +Inf."""
    bounds = [*map(str, BUCKETS[histogram]), "+Inf"]
    counts = [fields.get(f"{histogram}:{index}", 0.0) for index in range(len(bounds))]
    return list(zip(bounds, accumulate(counts), strict=True))


def _merged(increments: list[Increments]) -> list[Increments]:
    """All in one, if there is any."""
    total: Increments = {}
    for each in increments:
        for field, amount in each.items():
            _increase(total, field, amount)
    return [total] if total else []


def _send(batch: Batch[Increments]) -> None:
    for increments in batch.items:
        add(increments)


_SINK = Sink(name="Counters", send=_send, gather_seconds=1.0, is_kept=lambda _: True, merge=_merged)


def _key(model: str) -> str:
    return f"counters:{model}"
