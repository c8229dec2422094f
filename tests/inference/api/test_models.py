"""Models over HTTP: list, read, register, delete."""

import os
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from rest_framework.test import APIClient

from inference import dispatch
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import claim, finish
from inference.lifecycle.finish import Timings
from inference.models import Queue, RegisteredModel
from tests.inference.api.test_tasks import NewTask, assert_error
from tests.inference.engine.test_gguf_header import part, tensor

MODELS = "/api/v1/models"
MODEL_FIELDS = {
    *("name", "provider", "context_window", "max_output_tokens", "supports_streaming"),
    *("supports_structured_output", "status", "status_message", "loaded", "requested"),
    *("last_used_at", "unload_at", "loaded_with", "size_bytes", "download", "config", "extra"),
    *("api_key_source", "circuit", "endpoints"),
}


def register(api: APIClient, name: str = "new", provider: str = "echo", **config: object) -> Any:
    body = {"name": name, "provider": provider, "config": config}
    return api.post(f"{MODELS}/register", body, format="json")


def models_dir() -> Path:
    return Path(settings.MODELS_DIR)


def truncated(source: Path, size: int) -> Path:
    target = models_dir() / f"cut-{size}.gguf"
    with source.open("rb") as whole:
        target.write_bytes(whole.read(size))
    return target


def test_list_has_the_models_under_both_names(api: APIClient, echo: RegisteredModel) -> None:
    RegisteredModel.objects.create(name="a-loaded", provider="local", status="loaded")
    body = api.get(MODELS).json()
    assert set(body) == {"models", "total", "results", "next", "previous"}
    assert body["models"] == body["results"]
    assert [model["name"] for model in body["models"]] == ["a-loaded", "echo"]
    assert body["total"] == 2
    assert set(body["models"][0]) == MODEL_FIELDS
    assert api.get(f"{MODELS}/").json() == body


def test_list_comes_in_pages_that_nothing_shifts(api: APIClient, db: None) -> None:
    names = [f"m{index}" for index in range(5)]
    for name in names:
        RegisteredModel.objects.create(name=name, provider="echo")
    assert api.get(f"{MODELS}?limit=2").json()["total"] == 5
    for query in ("limit=2", "limit=2&offset=0&provider=echo"):
        seen: list[str] = []
        url = f"{MODELS}?{query}"
        while url:
            page = api.get(url).json()
            seen += [model["name"] for model in page["models"]]
            url = page["next"]
            RegisteredModel.objects.filter(name=seen[-1]).delete()
            RegisteredModel.objects.create(name=f"a{seen[-1]}", provider="echo")
        assert [name for name in seen if name in names] == names
        RegisteredModel.objects.filter(name__startswith="am").delete()
        RegisteredModel.objects.bulk_create(
            RegisteredModel(name=name, provider="echo") for name in ("m1", "m3", "m4")
        )


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("provider=local", ["weights"]),
        ("provider=echo", ["echo"]),
        ("loaded=true", ["weights"]),
        ("loaded=false", ["echo"]),
        ("provider=echo&loaded=true", []),
    ],
)
def test_filters_narrow_the_list(
    api: APIClient, echo: RegisteredModel, query: str, names: list[str]
) -> None:
    RegisteredModel.objects.create(name="weights", provider="local", status="loaded")
    assert [model["name"] for model in api.get(f"{MODELS}?{query}").json()["models"]] == names


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *(("loaded=perhaps", "loaded"), ("provider=x", "provider"), ("limit=0", "limit")),
        *(("offset=-1", "offset"), ("cursor=cD0lMDA%3D", "cursor")),
    ],
)
def test_bad_filter_is_refused_by_its_name(api: APIClient, query: str, field: str) -> None:
    assert_error(api.get(f"{MODELS}?{query}"), 400, "validation_error", field)


def test_unknown_model_is_not_found(api: APIClient, db: None) -> None:
    assert_error(api.get(f"{MODELS}/gone"), 404, "not_found")
    assert_error(api.delete(f"{MODELS}/gone"), 404, "not_found")
    assert_error(api.get(f"{MODELS}/a/b"), 404, "not_found")


def test_echo_model_is_registered_with_its_config(api: APIClient) -> None:
    config: dict[str, Any] = {"delay_ms": 2.5, "generation_params": {"max_tokens": 3}}
    response = register(api, "slow.echo:v1_2-b", **config, max_output_tokens=9)
    assert response.status_code == 201
    body = response.json()
    assert body["config"] == config | {"max_output_tokens": 9}
    assert (body["provider"], body["status"], body["loaded"]) == ("echo", "available", False)
    assert (body["max_output_tokens"], body["size_bytes"]) == (9, None)
    assert body["supports_streaming"] is True
    assert api.get(f"{MODELS}/slow.echo:v1_2-b/").json() == body


def test_local_model_tells_what_its_header_says(api: APIClient, smollm2_file: Path) -> None:
    response = register(api, "smol", "local", model_path=smollm2_file.name, context_window=512)
    assert response.status_code == 201, response.json()
    body = response.json()
    assert body["context_window"] == 512
    assert body["size_bytes"] == smollm2_file.stat().st_size
    extra = body["extra"]
    assert (extra["architecture"], extra["quantization"]) == ("llama", "Q4_1")
    assert 130e6 < extra["parameters"] < 140e6
    assert extra["context_length"] == 8192
    assert "im_start" in extra["chat_template"]


def test_local_model_may_be_named_by_its_absolute_path(api: APIClient, smollm2_file: Path) -> None:
    assert register(api, "smol", "local", model_path=str(smollm2_file)).status_code == 201


def test_context_window_defaults_to_the_setting_when_the_model_has_more(
    api: APIClient, smollm2_file: Path
) -> None:
    body = register(api, "smol", "local", model_path=smollm2_file.name).json()
    assert body["context_window"] == settings.N_CTX


@pytest.fixture
def bad_paths(smollm2_file: Path, tmp_path: Path) -> dict[str, str]:
    """What a model_path must not be, by what is wrong with it."""
    outside = tmp_path / "outside.gguf"
    os.link(smollm2_file, outside)
    link, loop, text = (models_dir() / name for name in ("link.gguf", "loop.gguf", "text.gguf"))
    for path, target in ((link, outside), (loop, loop)):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    text.write_text("These are no weights.\n" * 100)
    (models_dir() / "folder").mkdir(exist_ok=True)
    (models_dir() / "empty.gguf").touch()
    return {
        "dots": f"../{tmp_path.name}/outside.gguf",
        "dots inside": f"folder/../../{models_dir().name}-other/x.gguf",
        "absolute": str(outside),
        "link": link.name,
        "loop": loop.name,
        "missing": "missing.gguf",
        "folder": "folder",
        "the folder itself": ".",
        "text": text.name,
        "empty": "empty.gguf",
        "nul": "a\0b",
        "long name": 300 * "a",
        "device": "/dev/zero",
        "cut in the magic": truncated(smollm2_file, 3).name,
        "cut in the header": truncated(smollm2_file, 1000).name,
        "cut in the vocabulary": truncated(smollm2_file, 100_000).name,
        "cut in the weights": truncated(smollm2_file, 20_000_000).name,
    }


@pytest.mark.parametrize(
    "kind",
    [
        *("dots", "dots inside", "absolute", "link", "loop", "missing", "folder"),
        *("the folder itself", "text", "empty", "nul", "long name", "device"),
        *("cut in the magic", "cut in the header", "cut in the vocabulary", "cut in the weights"),
    ],
)
def test_bad_model_path_is_refused(api: APIClient, bad_paths: dict[str, str], kind: str) -> None:
    response = register(api, "bad", "local", model_path=bad_paths[kind])
    assert_error(response, 400, "validation_error", "config.model_path")
    assert not RegisteredModel.objects.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("register", "load", "unload", "presets", "check-compatibility", "register-from-preset"),
        *("", "-a", ".hidden", "a b", "a/b", "..", 101 * "a", "ä", "a\n", None, 7 * [1]),
    ],
)
def test_bad_name_is_refused(api: APIClient, name: str) -> None:
    # A line's end is white space, which is cut off before the name is judged.
    expected = 201 if name == "a\n" else 400
    response = register(api, name)
    assert response.status_code == expected
    if expected == 400:
        assert_error(response, 400, "validation_error", "name")
    else:
        assert response.json()["name"] == "a"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"provider": "echo"}, "name"),
        ({"name": "x"}, "provider"),
        ({"name": "x", "provider": "bard"}, "provider"),
        ({"name": "x", "provider": "echo", "config": []}, "config"),
        ({"name": "x", "provider": "echo", "confg": {}}, "confg"),
        ({"name": "x", "provider": "echo", "config": {"delay": 1}}, "config.delay"),
        ({"name": "x", "provider": "echo", "config": {"delay_ms": -1}}, "config.delay_ms"),
        ({"name": "x", "provider": "local"}, "config.model_path"),
        ({"name": "x", "provider": "local", "config": {"model_path": 1, "gpu_layer": 1}}, "config"),
    ],
)
def test_bad_registration_is_refused_by_the_field(
    api: APIClient, body: dict[str, object], field: str
) -> None:
    response = api.post(f"{MODELS}/register", body, format="json")
    assert_error(response, 400, "validation_error", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context_window", 63),
        ("context_window", 10_000_001),
        ("gpu_layers", -2),
        ("num_threads", 0),
        ("split_mode", "tensor"),
        ("main_gpu", -1),
        ("tensor_split", [0, 0]),
        ("tensor_split", []),
        ("num_batch_tokens", 0),
        ("max_num_seqs", 0),
        ("max_num_seqs", 257),
        ("num_cache_cells", 63),
        ("keep_alive_seconds", -2),
        ("pinned", "perhaps"),
        ("max_output_tokens", 128_001),
        ("generation_params", {"temperature": 3}),
        ("api_key", "secret"),
    ],
)
def test_bad_local_config_is_refused_by_the_field(
    api: APIClient, smollm2_file: Path, field: str, value: object
) -> None:
    response = register(api, "x", "local", model_path=smollm2_file.name, **{field: value})
    assert_error(response, 400, "validation_error", f"config.{field}")


def test_a_name_is_taken_once(api: APIClient, echo: RegisteredModel) -> None:
    assert_error(register(api, "echo", delay_ms=9), 409, "conflict")
    echo.refresh_from_db()
    assert echo.config == {}


def test_model_in_use_cannot_be_deleted(
    api: APIClient, new_task: NewTask, echo: RegisteredModel
) -> None:
    task = new_task()
    assert_error(api.delete(f"{MODELS}/echo"), 409, "conflict")
    finish.cancel(task)
    assert api.delete(f"{MODELS}/echo/").status_code == 204
    assert_error(api.get(f"{MODELS}/echo"), 404, "not_found")


def test_fallback_of_a_waiting_task_cannot_be_deleted(
    api: APIClient, new_task: NewTask, echo: RegisteredModel
) -> None:
    for name in ("second", "third", "ECHO"):
        RegisteredModel.objects.create(name=name, provider="echo")
    task = new_task(model="second", fallback_models=["third"])
    assert_error(api.delete(f"{MODELS}/third"), 409, "conflict")
    assert api.delete(f"{MODELS}/ECHO").status_code == 204
    # Its turn has come, and it has failed: the first one is not asked again.
    failure = InferenceError("It broke.", ErrorCode.PROVIDER_ERROR)
    lease = claim.claim(task.pk)
    assert lease is not None
    assert finish.fail(lease, failure, None, Timings())
    assert_error(api.delete(f"{MODELS}/third"), 409, "conflict")
    assert api.delete(f"{MODELS}/second").status_code == 204
    finish.cancel(task)
    assert api.delete(f"{MODELS}/third").status_code == 204


@pytest.mark.parametrize(("query", "stays"), [("", True), ("?delete_file=true", False)])
def test_file_of_a_deleted_model_stays_unless_asked(
    api: APIClient, smollm2_file: Path, query: str, stays: bool
) -> None:
    copy = models_dir() / "copy.gguf"
    copy.unlink(missing_ok=True)
    os.link(smollm2_file, copy)
    assert register(api, "copy", "local", model_path="copy.gguf").status_code == 201
    assert api.delete(f"{MODELS}/copy{query}").status_code == 204
    assert copy.exists() is stays


def test_split_model_is_registered_and_deleted_with_all_parts(api: APIClient) -> None:
    first, second, other = (
        models_dir() / f"[split]{name}.gguf"
        for name in ("-00001-of-00002", "-00002-of-00002", "-00001-of-00003")
    )
    first.write_bytes(part(1, [tensor([2], 0)]))
    other.touch()
    assert_error(
        register(api, "split", "local", model_path=first.name), 400, "validation_error", "config"
    )
    second.write_bytes(part(2, [tensor([4], 0)]))
    body = register(api, "split", "local", model_path=first.name).json()
    assert body["size_bytes"] == first.stat().st_size + second.stat().st_size
    assert api.delete(f"{MODELS}/split?delete_file=true").status_code == 204
    assert [path.exists() for path in (first, second, other)] == [False, False, True]
    other.unlink()


def test_only_files_in_models_dir_are_deleted(api: APIClient, tmp_path: Path) -> None:
    outside = tmp_path / "precious.gguf"
    outside.touch()
    config = {"model_path": str(outside)}
    RegisteredModel.objects.create(name="sly", provider="local", config=config)
    assert api.delete(f"{MODELS}/sly?delete_file=true").status_code == 204
    assert outside.exists()


def test_model_whose_file_is_gone_can_be_deleted(api: APIClient) -> None:
    config = {"model_path": "gone.gguf"}
    RegisteredModel.objects.create(name="gone", provider="local", config=config)
    assert api.delete(f"{MODELS}/gone?delete_file=true").status_code == 204


def test_bad_delete_file_deletes_nothing(api: APIClient, echo: RegisteredModel) -> None:
    response = api.delete(f"{MODELS}/echo?delete_file=yes")
    assert_error(response, 400, "validation_error", "delete_file")
    assert api.get(f"{MODELS}/echo").status_code == 200


def test_file_of_two_models_is_not_deleted_with_one(api: APIClient, smollm2_file: Path) -> None:
    config = {"model_path": smollm2_file.name, "context_window": 256}
    for name in ("one", "two"):
        body = {"name": name, "provider": "local", "config": config}
        assert api.post("/api/v1/models/register", body, format="json").status_code == 201
    answer = api.delete("/api/v1/models/one?delete_file=true")
    assert answer.status_code == 409
    assert "two" in answer.json()["message"]
    assert smollm2_file.exists()


@pytest.fixture
def weights(db: None) -> RegisteredModel:
    return RegisteredModel.objects.create(name="weights", provider="local", status="available")


def ask(api: APIClient, what: str, query: str = "", **body: object) -> Any:
    return api.post(f"{MODELS}/{what}{query}", body, format="json")


def test_load_is_accepted_and_shown(api: APIClient, weights: RegisteredModel) -> None:
    answer = ask(api, "load", model="weights")
    assert answer.status_code == 202
    assert set(answer.json()) == MODEL_FIELDS
    assert (answer.json()["status"], answer.json()["requested"]) == ("available", "load")
    assert api.get(f"{MODELS}/weights").json() == answer.json()
    changed = ask(api, "unload", "/", model="weights")
    assert (changed.status_code, changed.json()["requested"]) == (202, "unload")


def test_what_is_so_already_asks_for_nothing(api: APIClient, weights: RegisteredModel) -> None:
    assert ask(api, "unload", model="weights").json()["requested"] is None
    weights.set_status(RegisteredModel.Status.LOADED, "worker:1")
    answer = ask(api, "load", model="weights").json()
    assert (answer["loaded"], answer["requested"]) == (True, None)


@pytest.mark.parametrize("what", ["load", "unload"])
def test_bad_request_for_a_model_is_refused(
    api: APIClient, weights: RegisteredModel, echo: RegisteredModel, what: str
) -> None:
    assert_error(ask(api, what, model="gone"), 404, "not_found")
    assert_error(ask(api, what, model="echo"), 400, "validation_error", "model")
    assert_error(ask(api, what), 400, "validation_error", "model")
    assert_error(ask(api, what, model="a\0b"), 400, "validation_error", "model")
    assert_error(ask(api, what, model="weights", force=True), 400, "validation_error", "force")
    assert_error(ask(api, what, "?wait=61", model="weights"), 400, "validation_error", "wait")
    weights.refresh_from_db()
    assert weights.requested == ""


def test_deleted_local_model_is_told_to_the_gpu_worker(
    api: APIClient, weights: RegisteredModel, echo: RegisteredModel
) -> None:
    for model, num_rung in ((echo, 0), (weights, 1)):
        assert api.delete(f"{MODELS}/{model.name}").status_code == 204
        assert dispatch.waiting_messages(Queue.GPU) == num_rung


def test_deterministic_needs_a_buffer_for_each_sequence(api: APIClient, smollm2_file: Path) -> None:
    config = {"model_path": smollm2_file.name, "generation_params": {"deterministic": True}}
    refused = register(api, "shared", "local", **config, num_cache_cells=4096)
    assert refused.status_code == 400
    assert "num_cache_cells" in str(refused.json()["details"])
    assert register(api, "own", "local", **config).status_code == 201


def test_draft_model_is_a_local_one_of_the_same_vocabulary(
    api: APIClient, smollm2_file: Path, gemma_file: Path, echo: RegisteredModel
) -> None:
    smol = {"model_path": smollm2_file.name, "context_window": 512}
    assert register(api, "smol", "local", **smol).status_code == 201
    drafted = register(api, "drafted", "local", **smol, draft_model="smol")
    assert drafted.json()["config"]["draft_model"] == "smol"
    for config, reason in (
        (smol | {"draft_model": "nobody"}, "no local model nobody"),
        (smol | {"draft_model": echo.name}, "no local model"),
        (smol | {"draft_model": "smol", "speculative": "off"}, "nothing is drafted"),
        ({"model_path": gemma_file.name, "draft_model": "smol"}, "same family"),
    ):
        response = register(api, "other", "local", **config)
        assert_error(response, 400, "validation_error", "config.draft_model")
        assert reason in str(response.json()["details"])
