"""The routes of the queues and the metrics."""

from collections.abc import Iterator
from typing import Any

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from inference.api import queue_stats
from inference.api.queue_stats import QueueStats
from inference.models import RegisteredModel, loaded_models
from inference.providers import circuit_breaker
from inference.providers.cloud.endpoints import reports
from inference.providers.cloud.endpoints.endpoint import Health
from monitoring.api import query_parameters
from monitoring.api.permissions import needs
from monitoring.api.principal import Scope, principal_of
from monitoring.metrics import prometheus


@extend_schema(responses={200: QueueStats})
@needs(Scope.TASKS, Scope.MONITOR)
@api_view(["GET"])
def queue(request: Request) -> Response:
    """What waits and what runs, by queue: of your own tasks, with the scope `monitor` of all."""
    query_parameters.refuse_unknown(request, ())
    return Response(queue_stats.read(principal_of(request).visible_owner))


class Metrics(APIView):
    scopes = (Scope.MONITOR,)

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Ignore Accept: scrapers name formats that we do not have."""
        return super().perform_content_negotiation(request, force=True)

    @extend_schema(responses={(200, "text/plain"): str})
    def get(self, request: Request) -> HttpResponse:
        """Metrics for Prometheus, in its text format."""
        query_parameters.refuse_unknown(request, ())
        return HttpResponse(prometheus.text(_collect()), content_type=prometheus.CONTENT_TYPE)


def _collect() -> Iterator[Metric]:
    """All metrics; without Redis, what the database knows."""
    is_loaded = loaded_models()
    yield from prometheus.counted(list(is_loaded))
    running, waiting, oldest, workers = (
        GaugeMetricFamily(prometheus.PREFIX + name, meaning, labels=["queue"])
        for name, meaning in (
            ("num_requests_running", "Tasks that run."),
            ("num_requests_waiting", "Tasks that wait."),
            ("oldest_request_waiting_seconds", "How long the first of those has waited."),
            ("workers", "Workers alive."),
        )
    )
    for queue, state in queue_stats.read()["queues"].items():
        running.add_metric([queue], state["processing"])
        waiting.add_metric([queue], state["pending"])
        oldest.add_metric([queue], state["oldest_wait_seconds"] or 0)
        if state["workers"] is not None:
            workers.add_metric([queue], state["workers"])
    yield from (running, waiting, oldest, workers)
    yield _of_models("model_loaded", "1 while in memory.", is_loaded)
    is_open = circuit_breaker.are_open()
    yield _of_models("circuit_open", "1 while a cloud model is left alone.", is_open)
    yield from _of_endpoints()
    yield from prometheus.gpus()


def _of_endpoints() -> Iterator[Metric]:
    names = dict(RegisteredModel.objects.values_list("pk", "name"))
    healthy, running, limit, latency = (
        GaugeMetricFamily(prometheus.PREFIX + name, meaning, labels=["model", "endpoint"])
        for name, meaning in (
            ("endpoint_healthy", "1 while it is asked."),
            ("endpoint_requests_running", "Calls under way."),
            ("endpoint_concurrency_limit", "Calls at a time, at present."),
            ("endpoint_latency_seconds", "Of a usual answer."),
        )
    )
    for pk, states in reports.read().items():
        for endpoint, state in states.items():
            labels = [names.get(pk, ""), endpoint]
            healthy.add_metric(labels, state.health == Health.HEALTHY)
            running.add_metric(labels, state.in_flight)
            if state.limit is not None:
                limit.add_metric(labels, state.limit)
            if state.latency is not None:
                latency.add_metric(labels, state.latency)
    yield from (healthy, running, limit, latency)


def _of_models(name: str, meaning: str, states: dict[str, bool]) -> Metric:
    family = GaugeMetricFamily(prometheus.PREFIX + name, meaning, labels=["model"])
    for model, state in states.items():
        family.add_metric([model], state)
    return family
