"""Exported tasks: what POST /tasks takes, and gives the same answer; and two tasks side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from rest_framework.test import APIClient

from conversations.models import Conversation
from inference.lifecycle import claim, finish
from inference.loading import file_hashes
from inference.models import GenerationTask, ModelFile, RegisteredModel, TaskAttempt
from tests.inference.api.test_tasks import NO_TASK, TASKS, end

NewTask = Callable[..., GenerationTask]
pytestmark = pytest.mark.usefixtures("echo")

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
FILE = {"path": "a.gguf", "size_bytes": 1, "modified_ns": 2}
PROVENANCE: dict[str, Any] = {
    "file": FILE,
    "llama_cpp": "llama-cpp-python 1",
    "llama_cpp_system": "CPU : AVX2 = 1",
    "chat_template_sha256": None,
    "loaded": {"context_window": 2048},
    "params": {"seed": 4711, "temperature": 0.5},
}


def exported(api: APIClient, task: GenerationTask) -> dict[str, Any]:
    body: dict[str, Any] = api.get(f"{TASKS}/{task.pk}/export").json()
    return body


def asked(task: GenerationTask) -> dict[str, Any]:
    """All that the answer depends on."""
    names = ("params", "response_format", "tools", "extra_params", "context_overflow")
    return {name: task.request.get(name) for name in names} | {"messages": task.messages()}


@pytest.fixture
def model() -> RegisteredModel:
    """One that can be asked for anything; its file is never opened."""
    return RegisteredModel.objects.create(
        name="some", provider="openai_compatible", config={"base_url": "http://127.0.0.1:9/v1"}
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.2, "stop": ["\n"], "seed": 3, "max_tokens": 9, "priority": 5},
        {"response_format": {"type": "json_object"}},
        {"output_schema": SCHEMA},
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "add"}},
        },
        {"logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1.5}},
        {"context_overflow": "error", "timeout_seconds": 5, "metadata": {"a": [1]}},
        {"input_text": "three", "extra_params": {"service_tier": "flex"}},
    ],
)
def test_export_can_be_submitted_and_asks_for_the_same(
    api: APIClient, model: RegisteredModel, fields: dict[str, Any]
) -> None:
    first = api.post(TASKS, {"model": "some", "prompt": "one two", **fields}, format="json")
    assert first.status_code == 201, first.json()
    task = GenerationTask.objects.get(pk=first.json()["task_id"])
    body = exported(api, task)
    assert body["provenance"] is None
    again = api.post(TASKS, body, format="json")
    assert again.status_code == 201, again.json()
    new = GenerationTask.objects.get(pk=again.json()["task_id"])
    assert asked(new) == asked(task)
    assert (new.priority, new.metadata) == (task.priority, task.metadata)


def test_history_is_that_which_the_task_has_read(api: APIClient, new_task: NewTask) -> None:
    conversation = Conversation.objects.create(owner="local", system_prompt="Be brief.")
    first, second = [
        new_task(prompt=text, conversation_id=conversation.pk) for text in ("one", "two")
    ]
    for task in (first, second):
        lease = claim.claim(task.pk)
        assert lease is not None
        lease.task.messages()
        assert lease.task.conversation is not None
        lease.history_end = lease.task.conversation.history_end
        done = end_leased(lease)
    assert done.conversation is not None
    assert [message["content"] for message in exported(api, first)["messages"]] == [
        *("Be brief.", "one")
    ]
    assert [message["content"] for message in exported(api, second)["messages"]] == [
        *("Be brief.", "one", "done", "two")
    ]
    assert "conversation_id" not in exported(api, second)


def end_leased(lease: claim.Lease) -> GenerationTask:
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4, "cached_tokens": 0}
    result: Any = {"text": "done", "finish_reason": "stop", "usage": usage, "model": "echo"}
    assert finish.complete(lease, result | {"parsed": None, "extra": {}}, finish.Timings())
    return lease.task


def test_export_has_the_seed_and_provenance(
    api: APIClient, new_task: NewTask, settings: LazySettings
) -> None:
    settings.WEBHOOK_ALLOWED_HOSTS = ["127.0.0.1"]
    task = end(new_task(webhook_url="http://127.0.0.1:9/", idempotency_key="k"))
    TaskAttempt.objects.filter(task=task).update(provenance=PROVENANCE)
    body = exported(api, task)
    assert body["seed"] == 4711
    rest = {name: value for name, value in PROVENANCE.items() if name != "file"}
    assert body["provenance"] == rest | {"model_file": "a.gguf", "model_sha256": None}
    assert not body.keys() & {"webhook_url", "idempotency_key"}
    ModelFile.objects.create(**FILE, sha256="ab" * 32)
    assert exported(api, task)["provenance"]["model_sha256"] == "ab" * 32
    assert api.get(f"{TASKS}/{task.pk}/report").json()["provenance"]["model_sha256"] == "ab" * 32


def test_text_completion_is_not_exported(api: APIClient, new_task: NewTask) -> None:
    task = new_task()
    GenerationTask.objects.filter(pk=task.pk).update(request=task.request | {"is_raw": True})
    assert api.get(f"{TASKS}/{task.pk}/export").status_code == 409


def test_submission_may_insist_on_the_file(
    api: APIClient, tmp_path: Path, settings: LazySettings
) -> None:
    settings.MODELS_DIR = tmp_path
    path = tmp_path / "a.gguf"
    path.write_bytes(b"weights")
    RegisteredModel.objects.create(name="a", provider="local", config={"model_path": "a.gguf"})

    def refusal(sha256: str | None, **fields: Any) -> str | None:
        body = {"model": "a", "prompt": "x", "provenance": {"model_sha256": sha256}, **fields}
        response = api.post(TASKS, body, format="json").json()
        message: str | None = response.get("message")
        return message

    assert refusal("no such file") is None  # it is only looked at where that is asked for
    assert "not known yet" in str(refusal("00", check_provenance=True))
    file_hashes.hash_new_files()
    [row] = ModelFile.objects.all()
    assert refusal(row.sha256, check_provenance=True) is None
    assert "another file" in str(refusal("00", check_provenance=True))
    assert "no model_sha256" in str(refusal(None, check_provenance=True))
    assert "not local" in str(refusal("00", check_provenance=True, model="echo"))


def test_diff_shows_two_tasks_side_by_side(api: APIClient, new_task: NewTask) -> None:
    one = end(new_task(temperature=0.1), text="the same beginning")
    other = end(new_task(temperature=0.9, priority=3), text="the same end")
    GenerationTask.objects.filter(pk=one.pk).update(gpu_seconds=1.5)
    body = api.get(f"{TASKS}/{one.pk}/diff/{other.pk}").json()
    assert body["task_ids"] == [one.pk, other.pk]
    assert body["differing"] == ["parameters.temperature", "parameters.priority"]
    assert body["parameters"]["temperature"] == [0.1, 0.9]
    assert body["results"]["text"] == ["the same beginning", "the same end"]
    assert body["texts_part_at"] == len("the same ")
    assert body["costs"]["gpu_seconds"] == [1.5, None]
    assert body["metrics"]["ttft_ms"] == [1.0, 1.0]
    itself = api.get(f"{TASKS}/{one.pk}/diff/{one.pk}").json()
    assert (itself["differing"], itself["texts_part_at"]) == ([], None)


def test_others_tasks_are_neither_exported_nor_compared(api: APIClient, new_task: NewTask) -> None:
    mine, theirs = new_task(), new_task(owner="other")
    missing = NO_TASK.rpartition("/")[2]
    for path in (
        *(f"{theirs.pk}/export", f"{missing}/export", f"{mine.pk}/diff/{theirs.pk}"),
        *(f"{theirs.pk}/diff/{mine.pk}", f"{mine.pk}/diff/{missing}", f"{mine.pk}/diff/x"),
    ):
        assert api.get(f"{TASKS}/{path}").status_code == 404
