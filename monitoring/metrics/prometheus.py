"""Prometheus metrics: counters of all processes, and gauges.

The names are vLLM's where it has such a metric, with the prefix `sopllm_`.
"""

from collections.abc import Iterable, Iterator

import redis
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from monitoring.hardware import gpu
from monitoring.metrics import counters, task_counts

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

PREFIX = "sopllm_"
_HISTOGRAMS = {
    counters.QUEUE_TIME: "From the submission of a task to the start of its last attempt.",
    counters.TTFT: "From the start of an attempt to its first text, loading included.",
    counters.ITL: "Between one delta of an answer and the next.",
    counters.TPOT: "Mean time of each token of an answer after the first.",
    counters.E2E: "From the submission of a task to the end of its last attempt.",
}
# Names, the fields they are counted in, and what they say.
_COUNTERS = (
    ("prompt_tokens", task_counts.PROMPT_TOKENS, "Tokens of prompts."),
    ("generation_tokens", task_counts.GENERATION_TOKENS, "Tokens of answers."),
    ("prefix_cache_queries", task_counts.PROMPT_TOKENS, "Tokens looked for in the prefix cache."),
    ("prefix_cache_hits", task_counts.CACHED_TOKENS, "Tokens found in the prefix cache."),
    ("spec_decode_num_draft_tokens", task_counts.DRAFTED_TOKENS, "Tokens that were drafted."),
    (
        "spec_decode_num_accepted_tokens",
        task_counts.ACCEPTED_TOKENS,
        "Drafted tokens that became a part of an answer.",
    ),
    ("kept_cache_hits", task_counts.KEPT_CACHE_HITS, "KV caches of conversations read from disk."),
    ("kept_cache_hit_tokens", task_counts.KEPT_CACHE_TOKENS, "Tokens that were in them."),
    ("kept_cache_written_bytes", task_counts.KEPT_CACHE_BYTES, "KV caches written to disk."),
    ("request_cancelled", task_counts.CANCELLED, "Cancelled tasks."),
)
# The same, of fields that are followed by the value of a label.
_LABELLED_COUNTERS = (
    ("request_success", task_counts.SUCCESS, "finished_reason", "Completed tasks."),
    ("request_failure", task_counts.FAILURE, "error_code", "Failed tasks."),
)
_BYTES_PER_MB = 1024 * 1024


def text(metrics: Iterable[Metric]) -> bytes:
    """Metrics in Prometheus' text format."""
    return generate_latest(_Collected(metrics))


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def counted(models: list[str]) -> Iterator[Metric]:
    """Of the models that are registered now, so that the series are as many as those."""
    try:
        fields = counters.read(models)
    except redis.RedisError:
        return  # rather no value than a wrong one
    for histogram, meaning in _HISTOGRAMS.items():
        yield _histogram(histogram, meaning, fields)
    for name, field, meaning in _COUNTERS:
        counter = CounterMetricFamily(PREFIX + name, meaning, labels=["model"])
        for model, values in fields.items():
            counter.add_metric([model], values.get(field, 0.0))
        yield counter
    for name, start, label, meaning in _LABELLED_COUNTERS:
        counter = CounterMetricFamily(PREFIX + name, meaning, labels=["model", label])
        for model, values in fields.items():
            for field in sorted(field for field in values if field.startswith(start)):
                counter.add_metric([model, field.removeprefix(start)], values[field])
        yield counter


def _histogram(name: str, meaning: str, fields: dict[str, dict[str, float]]) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, meaning, labels=["model"])
    for model, values in fields.items():
        family.add_metric(
            [model], counters.cumulative(values, name), values.get(f"{name}:sum", 0.0)
        )
    return family


def gpus() -> Iterator[Metric]:
    labels = ["node", "gpu"]
    used = GaugeMetricFamily(f"{PREFIX}gpu_memory_used_bytes", "Memory in use.", labels=labels)
    total = GaugeMetricFamily(f"{PREFIX}gpu_memory_total_bytes", "Memory.", labels=labels)
    busy = GaugeMetricFamily(
        f"{PREFIX}gpu_utilization_ratio", "Part of the time that it computes.", labels=labels
    )
    for each in gpu.stats()["gpus"]:
        place = [each["node"], str(each["index"])]
        if each["used_mb"] is not None:
            used.add_metric(place, each["used_mb"] * _BYTES_PER_MB)
        if each["total_mb"] is not None:
            total.add_metric(place, each["total_mb"] * _BYTES_PER_MB)
        if each["utilization_percent"] is not None:
            busy.add_metric(place, each["utilization_percent"] / 100)
    yield from (used, total, busy)
