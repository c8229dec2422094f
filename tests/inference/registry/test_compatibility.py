"""POST /models/check-compatibility: would it fit, and what would it take."""

from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings
from rest_framework.test import APIClient

from inference.engine.gguf_header import read_header
from inference.loading import device_memory
from inference.loading.device_memory import DeviceMemory, MemoryKind
from inference.models import RegisteredModel
from inference.registry import compatibility
from presets import catalogue
from presets.models import Preset
from presets.packaged import PackagedFile
from presets.quantizations import RECOMMENDED_BITS
from tests.inference.api.test_tasks import assert_error

URL = "/api/v1/models/check-compatibility"
FROM_PRESET = "/api/v1/models/register-from-preset"
MB = 1024 * 1024
GB = 1024 * MB


@pytest.fixture(autouse=True)
def _presets(db: None) -> None:
    catalogue.load()


def check(api: APIClient, **fields: object) -> dict[str, Any]:
    response = api.post(URL, fields, format="json")
    assert response.status_code == 200, response.json()
    body: dict[str, Any] = response.json()
    return body


def has_memory(
    monkeypatch: pytest.MonkeyPatch, usable_bytes: int, kind: MemoryKind = MemoryKind.RAM
) -> None:
    """Some worker has said so."""
    reading = DeviceMemory(kind, 64 * GB, 64 * GB, usable_bytes)
    monkeypatch.setattr(device_memory, "published", lambda: reading)


@pytest.fixture
def smollm2(db: None, smollm2_file: Path) -> RegisteredModel:
    return RegisteredModel.objects.create(
        name="smol",
        provider="local",
        context_window=1024,
        config={"model_path": smollm2_file.name, "max_num_seqs": 4, "num_batch_tokens": 128},
    )


def test_answer_has_all_fields_and_adds_up(
    api: APIClient, smollm2: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 4 * GB)
    body = check(api, model="smol")
    assert body["compatible"] is True
    assert body["available_vram_mb"] == 4096
    assert body["breakdown"]["weights_mb"] == 92.1
    assert body["breakdown"]["kv_cache_mb"] == 4 * 1024 * 30 * 3 * 64 * 2 * 2 / MB
    assert sum(body["breakdown"].values()) == pytest.approx(body["required_vram_mb"], abs=0.2)
    assert (body["recommended_quantization"], body["warning"]) == ("F16", None)


def test_longer_context_needs_more_and_beyond_the_trained_one_is_warned_of(
    api: APIClient, smollm2: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 4 * GB)
    longer = check(api, model="smol", context_window=8192)
    assert (
        longer["breakdown"]["kv_cache_mb"]
        == 8 * check(api, model="smol")["breakdown"]["kv_cache_mb"]
    )
    assert longer["warning"] is None
    too_long = check(api, model="smol", context_window=8193)
    assert "trained for contexts of 8192 tokens" in too_long["warning"]


def test_quantization_changes_the_weights_alone(
    api: APIClient, smollm2: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 4 * GB)
    own, larger = check(api, model="smol"), check(api, model="smol", quantization="Q8_0")
    assert larger["breakdown"]["weights_mb"] == pytest.approx(134_515_008 * 8.5 / 8 / MB, abs=0.1)
    assert larger["breakdown"]["kv_cache_mb"] == own["breakdown"]["kv_cache_mb"]
    assert check(api, model="smol", quantization="Q4_1") == own


def test_best_quantization_that_fits_is_recommended(
    api: APIClient, smollm2: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {
        name: check(api, model="smol", quantization=name)["required_vram_mb"]
        for name in RECOMMENDED_BITS
    }
    for name in ("F16", "Q6_K", "Q2_K"):
        has_memory(monkeypatch, int((needed[name] + 0.1) * MB))
        assert check(api, model="smol")["recommended_quantization"] == name
    has_memory(monkeypatch, 10 * MB)
    body = check(api, model="smol")
    assert (body["compatible"], body["recommended_quantization"]) == (False, None)


def test_fewer_sequences_are_tried_before_it_is_said_not_to_fit(
    api: APIClient, smollm2: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 4 * GB)
    with_all = check(api, model="smol")["required_vram_mb"]
    has_memory(monkeypatch, int((with_all - 1) * MB))
    body = check(api, model="smol")
    assert body["compatible"] is True
    assert body["required_vram_mb"] < with_all - 40
    assert "2 sequences at a time instead of 4" in body["warning"]


def test_on_a_gpu_its_share_alone_is_required(
    api: APIClient, smollm2: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, GB, MemoryKind.GPU)
    on_gpu = check(api, model="smol")
    assert on_gpu["required_vram_mb"] < sum(on_gpu["breakdown"].values()) - 25
    smollm2.config["gpu_layers"] = 10
    smollm2.save()
    assert check(api, model="smol")["required_vram_mb"] < on_gpu["required_vram_mb"] / 1.5


def test_model_kept_off_the_gpu_is_measured_against_ram(
    api: APIClient, smollm2: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, MB, MemoryKind.GPU)
    smollm2.config["gpu_layers"] = 0
    smollm2.save()
    body = check(api, model="smol")
    assert body["available_vram_mb"] > 1
    assert "the machine that answers" in body["warning"]


def test_without_a_worker_the_figures_are_of_this_machine(
    api: APIClient, smollm2: RegisteredModel, settings: Settings
) -> None:
    body = check(api, model="smol")
    assert body["available_vram_mb"] > 0
    assert "the machine that answers" in body["warning"]
    settings.MODEL_MEMORY_LIMIT_MB = 100
    limited = check(api, model="smol")
    assert (limited["compatible"], limited["available_vram_mb"]) == (False, 100)


def test_worker_s_published_memory_counts(api: APIClient, smollm2: RegisteredModel) -> None:
    device_memory.publish()
    assert check(api, model="smol")["warning"] is None


def test_loaded_model_is_not_in_its_own_way(
    api: APIClient, smollm2: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 1)
    other = RegisteredModel.objects.create(name="other", provider="local", status="loaded")
    body = check(api, model="smol")
    assert (body["compatible"], body["warning"].count("other")) == (False, 1)
    other.delete()
    smollm2.set_status(RegisteredModel.Status.LOADED)
    assert check(api, model="smol")["compatible"] is True
    assert check(api, model="smol", quantization="F16")["compatible"] is False


def test_echo_needs_nothing(api: APIClient, echo: RegisteredModel) -> None:
    body = check(api, model="echo")
    assert body == {
        "compatible": True,
        "required_vram_mb": 0,
        "available_vram_mb": 0,
        "recommended_quantization": None,
        "warning": None,
        "breakdown": {"weights_mb": 0, "kv_cache_mb": 0, "compute_mb": 0},
    }


def test_installed_preset_is_known_by_its_file(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 4 * GB)
    body = check(api, preset_name="smollm2-135m-instruct")
    assert body["breakdown"]["weights_mb"] == 92.1
    assert body["warning"] is None


def test_preset_that_is_not_installed_is_known_by_its_size(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 4 * GB)
    monkeypatch.setattr(PackagedFile, "installed_path", lambda self: None)
    body = check(api, preset_name="smollm2-135m-instruct", quantization="Q8_0")
    assert body["breakdown"]["weights_mb"] == pytest.approx(0.135e9 * 8.5 / 8 / MB, rel=0.01)
    assert "file is not here" in body["warning"]


def test_preset_that_is_not_here_takes_what_it_says(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 64 * GB)
    preset = Preset.objects.get(name="qwen3-4b")
    preset.provider_config |= {"max_num_seqs": 1}
    preset.vram_requirements["Q6_K"] = 7000
    preset.save()
    body = check(api, preset_name="qwen3-4b", quantization="Q6_K")
    assert body["required_vram_mb"] == pytest.approx(7000, abs=1)
    assert body["required_vram_mb"] == pytest.approx(sum(body["breakdown"].values()), abs=1)
    shorter = check(api, preset_name="qwen3-4b", quantization="Q6_K", context_window=4096)
    assert shorter["breakdown"]["weights_mb"] == body["breakdown"]["weights_mb"]
    assert shorter["required_vram_mb"] < body["required_vram_mb"] - 300


def test_quantization_that_is_not_to_be_had_is_not_recommended(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 64 * GB)
    assert check(api, preset_name="qwen3-4b")["recommended_quantization"] == "Q8_0"
    has_memory(monkeypatch, 2 * GB)
    body = check(api, preset_name="qwen3-4b")
    assert (body["compatible"], body["recommended_quantization"]) == (False, None)


def test_model_that_is_still_to_come_is_known_by_its_preset(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 4 * GB)
    fields = {"preset_name": "qwen3-14b", "auto_download": False}
    assert api.post(FROM_PRESET, fields, format="json").status_code == 201
    body = check(api, model="qwen3-14b")
    assert body["compatible"] is False
    assert body["breakdown"]["weights_mb"] == pytest.approx(14.8e9 * 4.89 / 8 / MB, rel=0.02)


def test_model_whose_file_is_gone_is_known_by_its_number_of_parameters(
    api: APIClient, smollm2: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, 4 * GB)
    smollm2.config["model_path"] = "gone.gguf"
    smollm2.extra = {"parameters": 134_515_008, "quantization": "Q4_1"}
    smollm2.save()
    body = check(api, model="smol")
    assert body["breakdown"]["weights_mb"] == pytest.approx(134_515_008 * 5.11 / 8 / MB, rel=0.01)
    assert "file is not here" in body["warning"]


def test_usual_shape_is_near_a_real_one(smollm2_file: Path) -> None:
    usual, real = compatibility.usual_header(8_030_000_000), read_header(smollm2_file)
    # Llama 3 8B: 32 layers of 8 KV heads of 128, at 4.89 bits a weight.
    assert usual.kv_bytes_per_token == pytest.approx(32 * 8 * 128 * 2 * 2, rel=0.1)
    assert usual.weights_bytes == pytest.approx(4.58 * GB, rel=0.01)
    assert compatibility.usual_header(0).num_layers == 1
    guess = compatibility.usual_header(real.num_parameters, real.quantization)
    assert guess.weights_bytes == pytest.approx(real.weights_bytes, rel=0.15)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "model"),
        ({"model": "smol", "preset_name": "smollm2-135m-instruct"}, "model"),
        ({"model": "smol", "context_window": 63}, "context_window"),
        ({"model": "smol", "context_window": "many"}, "context_window"),
        ({"model": "smol", "quantization": "Q17"}, "quantization"),
        ({"model": "smol", "quantisation": "Q8_0"}, "quantisation"),
        ({"model": ["smol"]}, "model"),
        ({"model": "smol\0"}, "model"),
        ({"preset_name": ""}, "preset_name"),
    ],
)
def test_bad_input_is_refused_by_its_name(
    api: APIClient, smollm2: RegisteredModel, body: dict[str, Any], field: str
) -> None:
    assert_error(api.post(URL, body, format="json"), 400, "validation_error", field)


def test_body_that_is_no_object_is_refused(api: APIClient) -> None:
    assert_error(api.post(URL, ["smol"], format="json"), 400, "validation_error")


def test_unknown_names_are_not_found(api: APIClient) -> None:
    assert_error(api.post(URL, {"model": "gone"}, format="json"), 404, "not_found")
    response = api.post(URL, {"preset_name": "gone"}, format="json")
    assert_error(response, 404, "not_found")
    assert "/models/presets" in response.json()["message"]
