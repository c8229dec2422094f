"""Two tasks side by side."""

from typing import Any

from rest_framework import serializers

from inference.api.export import submission_of
from inference.api.provenance import provenance
from inference.api.report import metrics
from inference.engine.kv_cache import common_prefix_length
from inference.models import GenerationTask

_COSTS = ("gpu_seconds", "energy_joules", "cost_usd")


class ComparisonSerializer(serializers.Serializer[Any]):
    """Each value is a pair: of the task, and of the other one."""

    task_ids = serializers.ListField(child=serializers.CharField())
    differing = serializers.ListField(
        child=serializers.CharField(), help_text="The parts of parameters and provenance, by path."
    )
    parameters = serializers.DictField(child=serializers.ListField())
    provenance = serializers.DictField(child=serializers.ListField())
    results = serializers.DictField(child=serializers.ListField())
    texts_part_at = serializers.IntegerField(
        allow_null=True, help_text="Characters that both begin with; null for equal texts."
    )
    metrics = serializers.DictField(child=serializers.ListField())
    costs = serializers.DictField(child=serializers.ListField())


def compare(task: GenerationTask, other: GenerationTask) -> dict[str, Any]:
    """The body of GET /tasks/{id}/diff/{other}."""
    both = (task, other)
    texts = _text(task), _text(other)
    sides = {
        "parameters": _pairs(*(submission_of(each) for each in both)),
        "provenance": _pairs(*(provenance(each) or {} for each in both)),
    }
    return {
        "task_ids": [task.pk, other.pk],
        "differing": [
            f"{side}.{name}"
            for side, pairs in sides.items()
            for name, (one, another) in pairs.items()
            if one != another
        ],
        **sides,
        "results": _pairs(*(_result(each) for each in both)),
        "texts_part_at": None if texts[0] == texts[1] else common_prefix_length(*texts),
        "metrics": _pairs(*(metrics(each) for each in both)),
        "costs": {name: [getattr(each, name) for each in both] for name in _COSTS},
    }


def _pairs(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [one.get(name), other.get(name)] for name in {**one, **other}}


def _result(task: GenerationTask) -> dict[str, Any]:
    end = {"status": task.status, "error_code": task.error_code, "text": _text(task)}
    result = task.result or {}
    names = ("reasoning_content", "tool_calls", "parsed", "finish_reason", "usage")
    return end | {name: result.get(name) for name in names}


def _text(task: GenerationTask) -> str:
    return str(task.result["text"]) if task.result else ""
