"""A real model through the whole of a task: SmolLM2, loaded in this process."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from conversations.models import Conversation
from inference.execution import gpu_session
from inference.lifecycle import finish
from inference.loading import loaded_models
from inference.loading.loaded_engines import loaded_engines
from inference.models import GenerationTask, RegisteredModel
from inference.registry import registration
from tests.inference.lifecycle.test_lifecycle import fresh

NewTask = Callable[..., GenerationTask]
GREEDY: dict[str, Any] = {"model": "smol", "temperature": 0, "max_tokens": 8}

# Committed rows, which the lease renewer's thread reads too.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def smol(db: None, smollm2_file: Path, monkeypatch: pytest.MonkeyPatch) -> RegisteredModel:
    """The model with a small window and one thread; it stays loaded from test to test."""
    config = {"model_path": smollm2_file.name, "context_window": 256, "num_threads": 1}
    config |= {"gpu_layers": 0, "num_batch_tokens": 128}
    monkeypatch.setattr(
        loaded_models, "is_same", lambda loaded, wanted: loaded.config == wanted.config
    )
    return registration.register("smol", "local", config)


@pytest.fixture(scope="module", autouse=True)
def _unload(django_db_blocker: Any) -> Iterator[None]:
    yield
    for loaded in loaded_engines._loaded.values():
        loaded.close()
    loaded_engines._loaded.clear()


def run(task: GenerationTask) -> GenerationTask:
    gpu_session.run(task.pk)
    return fresh(task)


def result_of(task: GenerationTask) -> dict[str, Any]:
    assert task.result is not None, task.error
    result: dict[str, Any] = task.result
    return result


def test_first_task_loads_the_model(new_task: NewTask, smol: RegisteredModel) -> None:
    loaded_engines.unload("smol")
    task = run(new_task(**GREEDY))
    smol.refresh_from_db()
    assert (smol.status, smol.loaded_by != "") == ("loaded", True)
    assert task.model_load_ms is not None
    assert task.model_load_ms > 0
    again = run(new_task(**GREEDY))
    assert again.model_load_ms is None
    loaded_engines.unload("smol")
    smol.refresh_from_db()
    assert (smol.status, smol.loaded_by) == ("available", "")
    assert run(new_task(**GREEDY)).model_load_ms is not None


def test_answer_has_text_and_usage(new_task: NewTask, smol: RegisteredModel) -> None:
    prompt = "What is the capital of France?"
    task = run(new_task(**GREEDY, prompt=prompt))
    result = result_of(task)
    assert task.status == "completed"
    assert len(result["text"]) > 8
    usage = result["usage"]
    assert usage["completion_tokens"] <= 8
    assert usage["prompt_tokens"] > len(prompt.split())
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert (result["model"], result["extra"]) == ("smol", {})
    again = result_of(run(new_task(**GREEDY, prompt=prompt)))
    assert again["text"] == result["text"]


def test_max_tokens_end_the_answer(new_task: NewTask, smol: RegisteredModel) -> None:
    result = result_of(run(new_task(**GREEDY | {"max_tokens": 3})))
    assert result["finish_reason"] == "length"
    assert result["usage"]["completion_tokens"] == 3


def test_stop_sequence_ends_the_answer(new_task: NewTask, smol: RegisteredModel) -> None:
    prompt = "What is the capital of France?"
    whole = result_of(run(new_task(**GREEDY, prompt=prompt)))["text"]
    stop = whole[4:7]
    cut = result_of(run(new_task(**GREEDY, prompt=prompt, stop=[stop])))
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_seed_makes_the_answer_reproducible(new_task: NewTask, smol: RegisteredModel) -> None:
    fields = {"model": "smol", "prompt": "Tell a story.", "temperature": 1.5, "max_tokens": 8}

    def text(seed: int) -> str:
        return str(result_of(run(new_task(**fields, seed=seed)))["text"])

    first = text(1)
    assert text(1) == first
    assert {text(seed) for seed in (2, 3, 4)} != {first}


def test_grammar_shapes_the_answer(new_task: NewTask, smol: RegisteredModel) -> None:
    grammar = 'root ::= "yes" | "no"'
    result = result_of(run(new_task(**GREEDY, prompt="Is water wet?", grammar=grammar)))
    assert (result["text"] in {"yes", "no"}, result["finish_reason"]) == (True, "stop")


def long_conversation() -> Conversation:
    conversation = Conversation.objects.create(owner="local", system_prompt="Be brief.")
    for index in range(6):
        question = f"Question {index}: " + 30 * "word "
        conversation.append({"role": "user", "content": question})
        conversation.append({"role": "assistant", "content": 30 * "answer "})
    return conversation


def test_history_longer_than_the_window_loses_its_oldest(
    new_task: NewTask, smol: RegisteredModel
) -> None:
    conversation = long_conversation()
    task = run(new_task(**GREEDY, conversation_id=conversation.pk))
    result = result_of(task)
    assert task.status == "completed"
    assert result["extra"]["truncated_messages"] in {2, 4, 6, 8, 10}
    assert 150 < result["usage"]["prompt_tokens"] <= 256 - 8


def test_history_longer_than_the_window_may_be_an_error(
    new_task: NewTask, smol: RegisteredModel
) -> None:
    conversation = long_conversation()
    fields = GREEDY | {"conversation_id": conversation.pk, "context_overflow": "error"}
    task = run(new_task(**fields))
    assert (task.status, task.error_code) == ("failed", "context_length_exceeded")
    assert task.result is None


@pytest.mark.parametrize("num_words", [600, 200_000])
def test_prompt_longer_than_the_window_is_an_error(
    new_task: NewTask, smol: RegisteredModel, num_words: int
) -> None:
    task = run(new_task(**GREEDY, prompt=num_words * "word "))
    assert (task.status, task.error_code) == ("failed", "context_length_exceeded")
    assert task.error is not None
    assert "context_window" in task.error


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_cancel_is_obeyed_in_each_phase(
    new_task: NewTask, smol: RegisteredModel, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(new_task(**GREEDY))  # loads the model
    monkeypatch.setattr(gpu_session, "_EXCHANGE_SECONDS", 0.0)
    engine = loaded_engines.load(smol).engine
    unique = "prefill and more " if phase == "prefill" else "decode "
    prompt = (40 if phase == "prefill" else 1) * unique
    task = new_task(**GREEDY | {"max_tokens": 100}, prompt=prompt)
    step, num_steps = engine.step, 0
    last_step = 1 if phase == "prefill" else 8

    def counted_step() -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == last_step:
            finish.cancel(task)
        return step()

    monkeypatch.setattr(engine, "step", counted_step)
    result = result_of(task := run(task))
    assert (task.status, result["finish_reason"]) == ("cancelled", "cancelled")
    assert (result["text"] == "") == (phase == "prefill")
    assert last_step <= num_steps <= last_step + 1
    assert not engine.num_unfinished
    monkeypatch.undo()
    assert run(new_task(**GREEDY)).status == "completed"


def test_file_that_broke_is_told_in_words(
    new_task: NewTask, smol: RegisteredModel, smollm2_file: Path
) -> None:
    broken = Path(settings.MODELS_DIR) / "broken.gguf"
    shutil.copyfile(smollm2_file, broken)
    config = {"model_path": broken.name, "context_window": 256, "gpu_layers": 0}
    model = registration.register("broken", "local", config)
    with broken.open("r+b") as file:
        file.truncate(30_000_000)
    task = run(new_task(model="broken"))
    model.refresh_from_db()
    assert (task.status, task.error_code) == ("failed", "model_load_failed")
    assert task.error is not None
    assert "broken" in task.error
    assert model.status == "error"
    assert len(model.status_message) > 20
    broken.unlink()
    task = run(new_task(model="broken"))
    assert task.error is not None
    assert "no file broken.gguf" in task.error
    assert run(new_task(**GREEDY)).status == "completed"
