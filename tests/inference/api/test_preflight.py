"""POST /tasks?dry_run=true: what would become of a task, of which nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings

from inference import estimates, forecast
from inference.api import preflight
from inference.embeddings import token_counts
from inference.embeddings.messages import Answer
from inference.embeddings.request_queue import QueuedRequest
from inference.lifecycle import finish
from inference.lifecycle.finish import Timings
from inference.loading import device_memory
from inference.loading.device_memory import DeviceMemory, MemoryKind
from inference.models import GenerationTask, RegisteredModel
from inference.registry import registration
from monitoring.api.principal import LOCAL, Limits, Principal
from monitoring.models import OwnerUse
from tests.conftest import Valkey
from tests.inference.api.test_embeddings import ask
from tests.inference.lifecycle.test_lifecycle import answer, claimed
from tests.sopllm.test_handler import talk

DRY_RUN = "/api/v1/tasks?dry_run=true"
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("echo", "valkey")]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever counts first imports llama.cpp or LiteLLM."""
    monkeypatch.setattr(preflight, "_COUNT_SECONDS", 60.0)


def count(queued: QueuedRequest) -> Answer:
    """What the worker does."""
    model = RegisteredModel.objects.get(name=queued.request.model_name)
    return token_counts.count(model, queued.request)


def told(reply: Callable[[QueuedRequest], Answer | None] = count, **fields: Any) -> dict[str, Any]:
    """What is told when the worker replies so."""
    asked = {"model": "echo"} | ({} if "messages" in fields else {"prompt": "one two three"})
    response = ask(reply, asked | fields, DRY_RUN)
    assert response.status_code == 200, response.json()
    assert not GenerationTask.objects.exists()
    body: dict[str, Any] = response.json()
    return body


def told_at_once(path: str = DRY_RUN, **fields: Any) -> dict[str, Any]:
    """What is told where no worker is asked, or none replies."""

    async def conversation(client: Any) -> Any:
        return await client.post(path, json={"model": "echo", "prompt": "one"} | fields)

    response = talk(conversation)
    assert response.status_code == 200, response.json()
    body: dict[str, Any] = response.json()
    return body


@pytest.fixture
def smol(smollm2_file: Path) -> RegisteredModel:
    config = {"model_path": smollm2_file.name, "context_window": 256}
    return registration.register("smol", "local", config)


def test_task_that_would_be_accepted() -> None:
    body = told(priority=3)
    assert (body["is_accepted"], body["refusal"], body["would_fail"]) == (True, None, None)
    assert (body["model"], body["queue"], body["queue_position"]) == ("echo", "api", 0)
    assert (body["prompt_tokens"], body["is_estimated"], body["truncated_messages"]) == (
        3,
        False,
        0,
    )
    assert (body["is_loaded"], body["unloads"], body["cost_usd"]) == (None, [], None)


def test_prompt_of_a_local_model_is_counted_and_cut_as_it_would_be(smol: RegisteredModel) -> None:
    body = told(model="smol", prompt="Hi")
    assert 0 < body["prompt_tokens"] < 60
    assert (body["is_estimated"], body["context_window"]) == (False, 256)
    assert (body["truncated_messages"], body["is_loaded"]) == (0, False)
    turn = [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "Yes."}]
    messages = [*turn, *turn, *turn, *turn, {"role": "user", "content": "And?"}]
    body = told(model="smol", messages=messages)
    assert body["truncated_messages"] >= 2
    assert body["would_fail"] is None


def test_prompt_that_is_too_long_would_fail(smol: RegisteredModel) -> None:
    body = told(model="smol", prompt="word " * 300)
    assert body["is_accepted"]
    assert body["prompt_tokens"] > 300
    assert "context window 256" in body["would_fail"]


def test_cloud_model_has_a_cost() -> None:
    config: dict[str, Any] = {"model_name": "m", "base_url": "http://127.0.0.1:9/v1"}
    config |= {"input_cost_per_token": 0.01, "output_cost_per_token": 0.1}
    RegisteredModel.objects.create(name="cloud", provider="openai_compatible", config=config)
    body = told(model="cloud", max_tokens=10)
    assert body["is_estimated"]
    assert 1.0 < body["cost_usd"] < 2.0


def test_model_that_needs_room_names_what_goes(
    smol: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, pinned in (("pinned", True), ("old", False), ("new", False)):
        other = registration.register(name, "local", smol.config | {"pinned": pinned})
        other.set_status(RegisteredModel.Status.LOADED, "worker")
    full = DeviceMemory(MemoryKind.RAM, 2**33, 0, 0)
    monkeypatch.setattr(device_memory, "published", lambda: full)
    assert told(model="smol")["unloads"] == ["old"]
    assert told(model="new")["unloads"] == []
    roomy = DeviceMemory(MemoryKind.RAM, 2**33, 2**33, 2**33)
    monkeypatch.setattr(device_memory, "published", lambda: roomy)
    assert told(model="smol")["unloads"] == []


def test_local_model_has_gpu_seconds_once_they_are_known(
    smol: RegisteredModel, new_task: Callable[..., GenerationTask]
) -> None:
    forecast.unlearn()
    assert told(model="smol")["gpu_seconds"] is None
    for seconds in (2, 4, 6):
        timings = Timings(ttft_ms=seconds * 100, inference_ms=seconds * 1000)
        assert finish.complete(claimed(new_task(model="smol")), answer(), timings)
    forecast.refresh()
    estimates.forget()
    GenerationTask.objects.all().delete()
    body = told(model="smol")
    assert 3 < body["gpu_seconds"] < 5
    assert told()["gpu_seconds"] is None
    forecast.unlearn()


def test_without_a_worker_tokens_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_COUNT_SECONDS", 0.05)
    body = told_at_once(prompt="word " * 100)
    assert (body["prompt_tokens"], body["is_estimated"]) == (129, True)
    assert body["truncated_messages"] is None


def test_without_redis_tokens_are_estimated(valkey: Valkey) -> None:
    valkey.stop()
    assert told_at_once()["is_estimated"]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "nowhere"}, 400, "validation_error"),
        ({"temperature": 9}, 400, "validation_error"),
        ({"promt": "x"}, 400, "validation_error"),
    ],
)
def test_what_would_be_refused_says_how(fields: dict[str, Any], status: int, code: str) -> None:
    body = told_at_once(**fields)
    assert not body["is_accepted"]
    assert (body["refusal"]["status"], body["refusal"]["body"]["error"]) == (status, code)
    assert set(body["refusal"]["body"]) == {"error", "message", "details", "trace_id"}


def test_limits_refuse_and_the_rest_is_told(
    monkeypatch: pytest.MonkeyPatch, settings: LazySettings
) -> None:
    def limited(**limits: Any) -> None:
        principal = Principal(LOCAL.name, LOCAL.owner, LOCAL.scopes, Limits(**limits))
        monkeypatch.setattr(preflight, "principal_of", lambda request: principal)

    def refusal(**fields: Any) -> tuple[int, Any]:
        body = told(**fields)
        assert (body["is_accepted"], body["prompt_tokens"]) == (False, 3)
        return body["refusal"]["status"], body["refusal"]["body"]["details"]

    limited(max_priority=1)
    assert refusal(priority=2)[0] == 400
    limited(max_pending_tasks=0)
    assert refusal() == (429, {"limit": "max_pending_tasks"})
    limited(max_tokens_per_day=10)
    OwnerUse.objects.create(
        owner=LOCAL.owner, day="2020-01-01", num_tasks=1, prompt_tokens=10, completion_tokens=10
    )
    assert told()["is_accepted"]
    limited()
    settings.MAX_PENDING_TASKS = 0
    assert refusal()[0] == 503


def test_known_idempotency_key_names_its_task(new_task: Callable[..., GenerationTask]) -> None:
    task = new_task(idempotency_key="k")
    body = told_at_once(prompt="one two three", idempotency_key="k")
    assert (body["is_accepted"], body["repeats"]) == (True, task.pk)
    conflict = told_at_once(prompt="other", idempotency_key="k")
    assert conflict["refusal"]["status"] == 409


def test_dry_run_is_true_or_false() -> None:
    async def conversation(client: Any) -> Any:
        return await client.post("/api/v1/tasks?dry_run=1", json={"model": "echo", "prompt": "x"})

    assert talk(conversation).status_code == 400
