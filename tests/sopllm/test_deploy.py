"""What deploy/ asks of the metrics is there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from django.conf import settings
from rest_framework.test import APIClient

from inference.errors import ErrorCode
from inference.models import RegisteredModel
from monitoring.hardware import gpu
from monitoring.metrics import counters, task_counts

DEPLOY: Path = settings.BASE_DIR / "deploy"
A_GPU = {"node": "n", "index": 0, "used_mb": 1, "total_mb": 2, "utilization_percent": 3}


def expressions() -> Iterator[str]:
    alerts = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    for group in alerts["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    board = json.loads((DEPLOY / "grafana/dashboards/sopllm.json").read_text())
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (each["query"]["query"] for each in board["templating"]["list"])


def test_alerts_and_the_board_ask_for_metrics_that_exist(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    RegisteredModel.objects.create(name="m", provider="echo", status="available")
    counters.add(
        {("m", f"{task_counts.SUCCESS}stop"): 1, ("m", f"{task_counts.FAILURE}timeout"): 1}
    )
    monkeypatch.setattr(gpu, "stats", lambda: {"gpus": [A_GPU]})
    text = api.get("/metrics").content.decode()
    known = set(re.findall(r"^(?:# HELP )?(sopllm_\w+)", text, re.MULTILINE))
    asked = set(re.findall(r"sopllm_\w+", " ".join(expressions())))
    assert asked > {"sopllm_workers", "sopllm_e2e_request_latency_seconds_bucket"}
    assert asked - known == set()


def test_error_codes_of_the_alerts_exist() -> None:
    named = {
        code
        for codes in re.findall(r'error_code!?[~=]+"([^"]+)"', " ".join(expressions()))
        for code in codes.split("|")
    }
    assert named
    assert named <= {str(code) for code in ErrorCode}
