"""Kept KV caches: the next turn, or task of a key, of a real model computes only what is new."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings

from conversations.models import Conversation
from inference.execution import gpu_session
from inference.loading import gpu_reporter, kept_caches
from inference.loading.loaded_engines import loaded_engines
from inference.models import GenerationTask, RegisteredModel
from inference.registry import registration
from monitoring.metrics import counters, task_counts
from tests.conftest import wait_until
from tests.inference.lifecycle.test_lifecycle import fresh

NewTask = Callable[..., GenerationTask]
pytestmark = pytest.mark.django_db(transaction=True)

LONG_PROMPT = " ".join(f"Fact {number} is as true as any other." for number in range(20))


@pytest.fixture(autouse=True)
def folder(settings: LazySettings, tmp_path: Path) -> Path:
    settings.KV_DIR = tmp_path / "kv"
    return tmp_path / "kv"


@pytest.fixture
def smol(db: None, smollm2_file: Path) -> Iterator[RegisteredModel]:
    config = {"model_path": smollm2_file.name, "context_window": 512, "num_threads": 1}
    yield registration.register("smol", "local", config | {"gpu_layers": 0, "max_num_seqs": 2})
    for name in loaded_engines.names:
        loaded_engines.unload(name)


@pytest.fixture
def conversation(smol: RegisteredModel) -> Conversation:
    return Conversation.objects.create(owner="local", system_prompt=LONG_PROMPT)


@pytest.fixture
def ask(new_task: NewTask) -> Callable[..., dict[str, Any]]:
    """The usage of one turn."""

    def turn(conversation: Conversation, **fields: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"model": "smol", "prompt": "Go on."}
        body |= {"conversation_id": conversation.pk}
        body |= {"temperature": 0, "max_tokens": 8, "owner": conversation.owner}
        task = new_task(**body | fields)
        gpu_session.run(task.pk)
        assert fresh(task).status == "completed", fresh(task).error
        return dict(fresh(task).usage)

    return turn


Ask = Callable[..., dict[str, Any]]


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.kv"))


def test_turn_after_the_model_was_away_computes_what_is_new(
    conversation: Conversation, ask: Ask, folder: Path
) -> None:
    first = ask(conversation)
    assert first["cached_tokens"] == 0
    wait_until(lambda: len(files_in(folder)) == 1)
    loaded_engines.unload("smol")
    second = ask(conversation)
    assert second["cached_tokens"] >= first["total_tokens"] - 2
    counted = task_counts.KEPT_CACHE_HITS
    wait_until(lambda: counters.read(["smol"])["smol"].get(counted) == 1)
    assert files_in(folder)[0].stat().st_mode & 0o777 == 0o600
    assert conversation.pk not in files_in(folder)[0].name


def test_in_memory_nothing_is_read(
    conversation: Conversation, ask: Ask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(conversation)
    wait_until(lambda: len(files_in(folder)) == 1)
    files_in(folder)[0].write_bytes(b"broken: removed, if it were read")
    assert ask(conversation)["cached_tokens"] >= first["total_tokens"] - 2


def test_other_owner_and_other_model_get_nothing_of_it(
    conversation: Conversation, ask: Ask, folder: Path, smol: RegisteredModel
) -> None:
    ask(conversation)
    wait_until(lambda: len(files_in(folder)) == 1)
    loaded_engines.unload("smol")
    other = Conversation.objects.create(owner="other", system_prompt=LONG_PROMPT)
    assert ask(other)["cached_tokens"] == 0
    loaded_engines.unload("smol")
    smol.config["max_num_seqs"] = 3  # the state is of as many buffers
    smol.save()
    assert ask(conversation)["cached_tokens"] == 0


def test_broken_file_is_as_none(conversation: Conversation, ask: Ask, folder: Path) -> None:
    ask(conversation)
    wait_until(lambda: len(files_in(folder)) == 1)
    path = files_in(folder)[0]
    path.write_bytes(path.read_bytes()[:-1])
    loaded_engines.unload("smol")
    assert ask(conversation)["cached_tokens"] == 0


def test_caches_of_deleted_and_cleared_conversations_are_removed(
    conversation: Conversation, ask: Ask, folder: Path
) -> None:
    cleared = Conversation.objects.create(owner="local", system_prompt=LONG_PROMPT)
    kept = Conversation.objects.create(owner="local", system_prompt=LONG_PROMPT)
    for number, each in enumerate((conversation, cleared, kept), start=1):
        ask(each)
        wait_until(lambda number=number: len(files_in(folder)) == number)  # type: ignore[misc]
    conversation.remove()
    cleared.clear()
    gpu_reporter.forget_deleted()
    assert len(files_in(folder)) == 1
    loaded_engines.unload("smol")
    assert ask(kept)["cached_tokens"] > 0


def test_prompts_of_a_key_that_begin_alike_are_read_once(
    smol: RegisteredModel, new_task: NewTask, folder: Path
) -> None:
    def ask(question: str, **fields: Any) -> int:
        """How many tokens were not computed."""
        body: dict[str, Any] = {"prompt": f"{LONG_PROMPT} {question}"}
        body |= {"model": "smol", "max_tokens": 4, "prompt_cache_key": "facts"}
        task = new_task(**body | fields)
        gpu_session.run(task.pk)
        return int(fresh(task).usage["cached_tokens"])

    assert ask("What is fact 1?") == 0
    wait_until(lambda: len(files_in(folder)) == 1)
    first = files_in(folder)[0].read_bytes()
    loaded_engines.unload("smol")
    assert ask("And which one is true?") > 150
    loaded_engines.unload("smol")
    assert ask("And which one is true?", owner="other") == 0
    wait_until(lambda: len(files_in(folder)) == 2)
    assert first in [path.read_bytes() for path in files_in(folder)], "it is written once"
    loaded_engines.unload("smol")
    assert ask("And which one is true?", prompt_cache_key="other") == 0


def test_caches_of_keys_are_removed_when_nobody_uses_them(
    smol: RegisteredModel, new_task: NewTask, folder: Path, settings: LazySettings
) -> None:
    task = new_task(model="smol", prompt=LONG_PROMPT, prompt_cache_key="facts", max_tokens=4)
    gpu_session.run(task.pk)
    wait_until(lambda: len(files_in(folder)) == 1)
    gpu_reporter.forget_deleted()
    [path] = files_in(folder)
    long_ago = path.stat().st_mtime - settings.TASK_TTL_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    gpu_reporter.forget_deleted()
    assert files_in(folder) == []


@pytest.mark.parametrize(
    ("fields", "setting"),
    [({"save_to_conversation": False}, 2**30), ({}, 0), ({}, 1000)],
    ids=["unsaved turn", "off", "too small a bound"],
)
def test_nothing_is_kept_where_it_is_not_wanted(
    conversation: Conversation,
    ask: Ask,
    folder: Path,
    settings: LazySettings,
    fields: dict[str, Any],
    setting: int,
) -> None:
    settings.KV_MAX_BYTES = setting
    ask(conversation, **fields)
    assert files_in(folder) == []
    loaded_engines.unload("smol")
    ask(conversation, **fields)
    assert files_in(folder) == []


def test_short_conversations_are_computed_again(
    smol: RegisteredModel, ask: Ask, folder: Path
) -> None:
    short = Conversation.objects.create(owner="local")
    assert ask(short)["total_tokens"] < kept_caches.MIN_TOKENS
    assert files_in(folder) == []
