"""The body of a task as it is written by hand, and as its fields describe it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework import serializers

from inference.models import GenerationTask
from inference.task_body import TaskSerializer

NewTask = Callable[..., GenerationTask]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey")]

RESULT: dict[str, Any] = {
    "text": "Hello",
    "finish_reason": "stop",
    "usage": {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "cached_tokens": 0,
    },
    "model": "echo",
    "parsed": {"a": [1]},
    "extra": {"truncated_messages": 2},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
TOKEN = {"token": "a", "logprob": -0.5, "bytes": [97]}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"status": "processing", "attempt": 2},
        {"status": "completed", "result": RESULT},
        {"status": "completed", "result": RESULT | {"tool_calls": [CALL]}},
        {
            "status": "completed",
            "result": RESULT
            | {
                "reasoning_content": "Hm.",
                "logprobs": {"content": [TOKEN | {"top_logprobs": [TOKEN]}]},
            },
        },
        {"status": "failed", "error": "It broke.", "error_code": "internal_error"},
    ],
)
def test_body_has_what_its_fields_describe(new_task: NewTask, change: dict[str, Any]) -> None:
    task = new_task(metadata={"a": 1})
    if change:
        change |= {"started_at": timezone.now(), "finished_at": timezone.now() + timedelta(0, 1)}
        GenerationTask.objects.filter(pk=task.pk).update(**change)
    read = GenerationTask.objects.read(task.pk)
    assert read is not None
    serializer = TaskSerializer()
    described = serializers.ModelSerializer.to_representation(serializer, read)
    assert list(serializer.to_representation(read).items()) == list(described.items())
