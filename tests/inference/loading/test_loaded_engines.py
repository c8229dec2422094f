"""Models in and out of the worker's memory: real ones, with small windows."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings

from inference.engine import llama_runner
from inference.engine.errors import EngineError, ModelLoadError
from inference.engine.scheduler import MIN_PREFILL_TOKENS
from inference.engine.sequence import FinishReason, SamplingParams
from inference.errors import ErrorCode, InferenceError
from inference.loading import device_memory, requests
from inference.loading.loaded_engines import LoadedEngine, loaded_engines
from inference.models import GenerationTask, RegisteredModel
from inference.registry import registration
from monitoring.events import log
from monitoring.hardware import worker_identity, workers
from monitoring.redis import outbox
from tests.conftest import Valkey

NewTask = Callable[..., GenerationTask]
Register = Callable[..., RegisteredModel]
MB = 1024 * 1024


@pytest.fixture(autouse=True)
def _empty_memory(db: None) -> Iterator[None]:
    yield
    for name in loaded_engines.names:
        loaded_engines.unload(name)


@pytest.fixture
def register(db: None, smollm2_file: Path) -> Register:
    """Registers SmolLM2 under a name, small; keys of its config may be given."""

    def make(name: str, **config: object) -> RegisteredModel:
        small = {"model_path": smollm2_file.name, "context_window": 256, "num_threads": 1}
        small |= {"gpu_layers": 0, "num_batch_tokens": 64}
        return registration.register(name, "local", small | config)

    return make


def loaded_names() -> set[str]:
    return set(loaded_engines.names)


def row(model: RegisteredModel) -> RegisteredModel:
    return RegisteredModel.objects.get(pk=model.pk)


def mb_of(loaded: LoadedEngine) -> int:
    return -(-loaded.estimate.total_bytes // MB)


def use(loaded: LoadedEngine) -> str:
    """Generate a few tokens, as a session does."""
    tokens = loaded.runner.tokenize("Once upon a time")
    with loaded_engines.in_use(loaded):
        params = SamplingParams(temperature=0.0, max_tokens=4)
        sequence = loaded.engine.add_request("request", tokens, params)
        while loaded.engine.num_unfinished:
            loaded.engine.step()
    return loaded.runner.token_to_bytes(sequence.output_tokens[0]).decode()


def failure_of_loading(model: RegisteredModel) -> str:
    with pytest.raises(InferenceError) as raised:
        loaded_engines.load(model)
    assert raised.value.code == ErrorCode.MODEL_LOAD_FAILED
    return raised.value.message


def test_model_is_loaded_once(register: Register) -> None:
    model = register("one")
    loaded = loaded_engines.load(model)
    assert loaded_engines.load(row(model)) is loaded
    assert loaded_engines.names == ["one"]
    shown = row(model)
    assert (shown.status, shown.loaded_by != "") == ("loaded", True)
    assert use(loaded)


def test_sizes_of_the_registration_are_those_of_the_model(register: Register) -> None:
    sizes = {"max_num_seqs": 3, "num_cache_cells": 512, "context_window": 256}
    runner = loaded_engines.load(register("sized", **sizes)).runner
    assert (runner.max_num_seqs, runner.num_cells, runner.n_ctx_per_seq) == (3, 512, 256)


def test_provenance_has_the_split_on_gpus_as_it_was_used(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = register("split", split_mode="row", tensor_split=[3, 1])
    assert loaded_engines.load(model).provenance["loaded"]["gpu_split"] is None
    loaded_engines.unload("split")
    monkeypatch.setattr(device_memory, "has_gpu", lambda: True)
    used = loaded_engines.load(model).provenance["loaded"]["gpu_split"]
    assert used == {"split_mode": "row", "main_gpu": 0, "tensor_split": (3, 1)}


def test_setting_says_how_many_sequences_where_the_registration_is_silent(
    register: Register, settings: Settings
) -> None:
    settings.MAX_NUM_SEQS = 5
    assert loaded_engines.load(register("silent")).engine.max_num_seqs == 5


def test_there_are_no_more_sequences_than_tokens_in_a_batch(register: Register) -> None:
    loaded = loaded_engines.load(register("narrow", num_batch_tokens=2))
    assert loaded.engine.max_num_seqs == 2


def test_draft_model_is_loaded_with_its_target_and_counted(register: Register) -> None:
    register("small")
    alone = loaded_engines.load(register("alone"))
    loaded = loaded_engines.load(register("drafted", draft_model="small"))
    draft_bytes = loaded.estimate.total_bytes - alone.estimate.total_bytes
    assert draft_bytes > alone.estimate.weights_bytes
    assert loaded.draft_runner is not None
    assert loaded.draft_runner.max_num_seqs == loaded.runner.max_num_seqs
    assert loaded_names() == {"alone", "drafted"}
    assert use(loaded) == use(alone)
    loaded_engines.unload("drafted")
    with pytest.raises(EngineError, match="closed"):
        loaded.draft_runner.tokenize("a")


def test_draft_model_that_is_gone_is_told_in_words(register: Register) -> None:
    small = register("small")
    model = register("drafted", draft_model="small")
    small.delete()
    assert "no local model small" in failure_of_loading(model)


def test_drafts_are_switched_off_by_the_registration(register: Register) -> None:
    assert loaded_engines.load(register("off", speculative="off")).runner.max_draft_tokens == 0
    assert loaded_engines.load(register("usual")).runner.max_draft_tokens > 0


def test_models_stay_together_while_they_fit(register: Register, gemma_file: Path) -> None:
    smol = loaded_engines.load(register("smol"))
    gemma = loaded_engines.load(register("gemma", model_path=gemma_file.name))
    assert loaded_names() == {"smol", "gemma"}
    assert use(smol)
    assert use(gemma)


def test_least_recently_used_model_makes_room(register: Register, settings: Settings) -> None:
    first, second, third = (register(name) for name in ("first", "second", "third"))
    used = loaded_engines.load(first)
    loaded_engines.load(second)
    settings.MODEL_MEMORY_LIMIT_MB = mb_of(used) * 2
    use(used)
    loaded_engines.load(third)
    assert loaded_names() == {"first", "third"}
    assert (row(second).status, row(second).loaded_by) == ("available", "")
    assert row(first).status == "loaded"


def test_pinned_model_is_not_driven_out(register: Register, settings: Settings) -> None:
    pinned = loaded_engines.load(register("pinned", pinned=True))
    loaded_engines.load(register("second"))
    settings.MODEL_MEMORY_LIMIT_MB = mb_of(pinned) * 2
    loaded_engines.load(register("third"))
    assert loaded_names() == {"pinned", "third"}


def test_model_in_use_is_not_driven_out(register: Register, settings: Settings) -> None:
    busy = loaded_engines.load(register("busy"))
    loaded_engines.load(register("idle"))
    settings.MODEL_MEMORY_LIMIT_MB = mb_of(busy) * 2
    with loaded_engines.in_use(busy):
        loaded_engines.load(register("third"))
    assert loaded_names() == {"busy", "third"}


def test_sequences_are_halved_only_when_no_model_can_go(
    register: Register, settings: Settings
) -> None:
    # Long windows, so that the sequences weigh more than the weights.
    config: dict[str, Any] = {"max_num_seqs": 4, "context_window": 2048}
    alone = loaded_engines.load(register("alone", **config))
    whole_mb = mb_of(alone)
    per_sequence_mb = alone.estimate.kv_cache_bytes // 4 // MB
    settings.MODEL_MEMORY_LIMIT_MB = whole_mb
    assert loaded_engines.load(register("next", **config)).runner.max_num_seqs == 4
    assert loaded_names() == {"next"}
    settings.MODEL_MEMORY_LIMIT_MB = whole_mb - per_sequence_mb
    fewer = loaded_engines.load(register("fewer", **config))
    assert loaded_names() == {"fewer"}
    assert fewer.runner.max_num_seqs == fewer.engine.max_num_seqs == 2
    assert use(fewer)


def test_model_too_large_fails_in_words_and_the_others_go_on(
    register: Register, settings: Settings
) -> None:
    pinned = loaded_engines.load(register("pinned", pinned=True))
    settings.MODEL_MEMORY_LIMIT_MB = mb_of(pinned) + 1
    large = register("large")
    message = failure_of_loading(large)
    assert "MODEL_MEMORY_LIMIT_MB" in message
    assert (row(large).status, row(large).loaded_by) == ("error", "")
    assert "MODEL_MEMORY_LIMIT_MB" in row(large).status_message
    assert use(pinned)
    settings.MODEL_MEMORY_LIMIT_MB = 0
    loaded_engines.load(large)
    assert (row(large).status, row(large).status_message) == ("loaded", "")


def test_model_that_could_never_fit_drives_no_model_out(
    register: Register, settings: Settings
) -> None:
    idle = loaded_engines.load(register("idle"))
    settings.MODEL_MEMORY_LIMIT_MB = mb_of(idle)
    message = failure_of_loading(register("large", context_window=8192))
    assert "MODEL_MEMORY_LIMIT_MB" in message
    assert loaded_names() == {"idle"}


def refuse_memory(monkeypatch: pytest.MonkeyPatch, while_loaded: str) -> None:
    """As a system that gives less than was measured, for as long as a model is in memory."""
    real = llama_runner.LlamaRunner

    def load(params: Any) -> Any:
        if while_loaded in loaded_names():
            raise ModelLoadError("llama.cpp: failed to allocate buffer for kv cache.")
        return real(params)

    monkeypatch.setattr(llama_runner, "LlamaRunner", load)


def test_allocation_that_fails_after_all_drives_models_out_too(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded_engines.load(register("first"))
    loaded_engines.load(register("second"))
    refuse_memory(monkeypatch, while_loaded="first")
    loaded_engines.load(register("third"))
    assert loaded_names() == {"second", "third"}


def test_allocation_that_always_fails_is_told_in_words(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = loaded_engines.load(register("pinned", pinned=True))
    refuse_memory(monkeypatch, while_loaded="pinned")
    assert "failed to allocate" in failure_of_loading(register("second"))
    assert use(pinned)


def test_file_that_cannot_be_used_drives_no_model_out(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded_engines.load(register("first"))

    def load(params: Any) -> Any:
        raise ModelLoadError("llama.cpp: unknown model architecture: 'new'.")

    monkeypatch.setattr(llama_runner, "LlamaRunner", load)
    assert "unknown model architecture" in failure_of_loading(register("new"))
    assert loaded_names() == {"first"}


def test_model_registered_anew_is_loaded_anew(register: Register) -> None:
    old = register("same")
    first = loaded_engines.load(old)
    old.delete()
    second = loaded_engines.load(register("same", max_num_seqs=2))
    assert second is not first
    assert second.engine.max_num_seqs == 2


def test_model_registered_anew_while_it_runs_is_refused(register: Register) -> None:
    old = register("same")
    with loaded_engines.in_use(loaded_engines.load(old)):
        old.delete()
        assert "submit again" in failure_of_loading(register("same"))
    loaded_engines.serve_requests()
    assert loaded_engines.load(RegisteredModel.objects.get(name="same"))


def test_model_that_crashed_twice_is_not_loaded(register: Register) -> None:
    model = register("crashing")
    model.num_crashes = 2
    model.save(update_fields=["num_crashes"])
    assert "register it anew" in failure_of_loading(model)
    assert loaded_names() == set()


def test_idle_time_begins_when_use_ends(register: Register, settings: Settings) -> None:
    settings.KEEP_ALIVE_SECONDS = 600
    model = register("one")
    loaded = loaded_engines.load(model)
    loaded_until = row(model).unload_at
    sizes = loaded.provenance["loaded"]
    assert row(model).loaded_with == sizes | {
        "num_threads": loaded.runner.thread_counts[-1],
        "step_prompt_tokens": MIN_PREFILL_TOKENS,
    }
    assert loaded_until is not None
    with loaded_engines.in_use(loaded):
        assert row(model).unload_at is None
        loaded.engine.add_request("a", loaded.runner.tokenize("word " * 200), SamplingParams())
        loaded.engine.step()
        loaded.engine.abort("a", FinishReason.CANCELLED)
    shown = row(model)
    assert shown.loaded_with is not None
    assert shown.loaded_with["step_prompt_tokens"] == loaded.engine.num_step_prompt_tokens
    assert shown.last_used_at is not None
    assert shown.unload_at == shown.last_used_at + timedelta(seconds=600)
    assert shown.unload_at > loaded_until


@pytest.mark.parametrize("config", [{"keep_alive_seconds": -1}, {"pinned": True}])
def test_model_may_be_kept_for_ever(register: Register, config: dict[str, Any]) -> None:
    model = register("kept", **config)
    use(loaded_engines.load(model))
    assert row(model).unload_at is None
    loaded_engines.serve_requests()
    assert loaded_names() == {"kept"}


def test_idle_model_is_unloaded_when_its_time_is_over(register: Register) -> None:
    short, long = register("short", keep_alive_seconds=0), register("long", keep_alive_seconds=60)
    use(loaded_engines.load(short))
    use(loaded_engines.load(long))
    loaded_engines.serve_requests()
    assert (loaded_names(), loaded_engines.is_spent) == ({"long"}, False)
    assert (row(short).status, row(short).unload_at) == ("available", None)


def test_model_that_another_worker_holds_too_is_idle_by_its_own_use(register: Register) -> None:
    model = register("shared", keep_alive_seconds=60)
    use(loaded_engines.load(model))
    other = "gpu@elsewhere:1"
    RegisteredModel.objects.update(loaded_by=other, unload_at=timezone.now())
    loaded_engines.serve_requests()
    assert loaded_names() == {"shared"}
    loaded_engines.get("shared").recorded_at -= 60
    loaded_engines.serve_requests()
    assert loaded_names() == set()
    assert row(model).loaded_by == other


def test_memory_is_spent_once_nothing_idle_is_left(register: Register) -> None:
    model = register("short", keep_alive_seconds=0)
    use(loaded_engines.load(model))
    loaded_engines.serve_requests()
    assert loaded_engines.is_spent
    loaded_engines.load(model)
    assert not loaded_engines.is_spent
    loaded_engines.unload("short")  # on request: it may come back soon
    assert not loaded_engines.is_spent


def test_idle_model_stays_for_tasks_that_wait_for_it(register: Register, new_task: NewTask) -> None:
    use(loaded_engines.load(register("short", keep_alive_seconds=0)))
    task = new_task(model="short")
    loaded_engines.serve_requests()
    assert loaded_names() == {"short"}
    task.delete()
    loaded_engines.serve_requests()
    assert loaded_names() == set()


def test_deleted_model_is_unloaded(register: Register) -> None:
    model = register("gone")
    loaded_engines.load(model)
    model.delete()
    loaded_engines.serve_requests()
    assert loaded_names() == set()


def test_model_that_another_worker_has_taken_over_keeps_its_row(register: Register) -> None:
    model = register("shared")
    loaded_engines.load(model)
    model.set_status(RegisteredModel.Status.LOADED, "another-host:1")
    loaded_engines.unload("shared")
    assert (row(model).status, row(model).loaded_by) == ("loaded", "another-host:1")


def test_model_that_was_taken_for_lost_is_told_of_again(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = register("one")
    loaded = loaded_engines.load(model)
    monkeypatch.setattr(workers, "gone", lambda identities, queue: set(identities))
    requests.sweep()
    assert row(model).status == "available"
    assert loaded_engines.load(row(model)) is loaded
    assert (row(model).status, row(model).loaded_by) == ("loaded", worker_identity.current())


def test_model_whose_loading_was_not_stored_is_told_of_when_it_is_used(register: Register) -> None:
    loaded = loaded_engines.load(register("one"))
    RegisteredModel.objects.update(status="loading")
    assert loaded_engines.load(row(loaded.model)) is loaded
    assert row(loaded.model).status == "loaded"


def test_requests_are_served_in_their_order(register: Register) -> None:
    first, second = register("first"), register("second")
    loaded_engines.load(first)
    for model, request in ((second, "load"), (first, "unload")):
        requests.ask(row(model), RegisteredModel.Request(request))
    loaded_engines.serve_requests()
    assert loaded_names() == {"second"}
    assert (row(first).status, row(second).status) == ("available", "loaded")
    assert not requests.are_pending()


def test_request_that_cannot_be_served_ends_with_the_reason(
    register: Register, settings: Settings
) -> None:
    model = register("large")
    settings.MODEL_MEMORY_LIMIT_MB = 1
    requests.ask(model, RegisteredModel.Request.LOAD)
    loaded_engines.serve_requests()
    shown = row(model)
    assert (shown.status, shown.requested) == ("error", "")
    assert "MODEL_MEMORY_LIMIT_MB" in shown.status_message


def test_unexpected_fault_ends_the_request_too(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = register("odd")
    requests.ask(model, RegisteredModel.Request.LOAD)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unexpected")

    monkeypatch.setattr(device_memory, "check_fits", fail)
    with pytest.raises(RuntimeError):
        loaded_engines.serve_requests()
    assert row(model).requested == ""
    loaded_engines.serve_requests()


def test_request_for_a_model_of_another_worker_is_left_to_it(register: Register) -> None:
    model = register("elsewhere")
    model.set_status(RegisteredModel.Status.LOADED, "another-host:1")
    requests.ask(row(model), RegisteredModel.Request.UNLOAD)
    loaded_engines.serve_requests()
    assert row(model).requested == "unload"


def test_request_to_load_a_loaded_model_prolongs_its_stay(register: Register) -> None:
    model = register("one", keep_alive_seconds=60)
    loaded_engines.load(model)
    RegisteredModel.objects.update(unload_at=timezone.now())
    requests.ask(row(model), RegisteredModel.Request.LOAD)
    shown = row(model)
    assert shown.requested == ""
    assert shown.unload_at is not None
    assert shown.unload_at > timezone.now() + timedelta(seconds=30)


def test_coming_and_going_is_told(register: Register, valkey: Valkey) -> None:
    loaded_engines.load(register("one"))
    loaded_engines.unload("one")
    outbox.flush()
    loaded, unloaded = log.read(0).events
    worker = worker_identity.current()
    assert loaded.type == "model.loaded"
    assert loaded.data == {"model": "one", "worker": worker, "load_ms": loaded.data["load_ms"]}
    assert loaded.data["load_ms"] > 0
    assert (unloaded.type, unloaded.data) == ("model.unloaded", {"model": "one", "worker": worker})
