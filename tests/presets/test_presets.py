"""The catalogue of presets: its files, its rows, and registering from it."""

import threading
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries, Settings
from rest_framework.test import APIClient

from inference.models import ModelDownload, RegisteredModel
from inference.providers.registry import provider_class
from monitoring.api.principal import LOCAL
from presets import catalogue
from presets.models import Preset
from tests.conftest import client_of
from tests.inference.api.test_tasks import assert_error

MODELS = "/api/v1/models"
FROM_PRESET = f"{MODELS}/register-from-preset"
KEY = "key-never-to-be-seen"
HUB_ENTRY: dict[str, Any] = {
    "name": "tiny",
    "provider": "local",
    "source": "hub",
    "huggingface_repo": "org/tiny-GGUF",
    "filename": "tiny-Q8_0.gguf",
    "files": {"Q8_0": "tiny-Q8_0.gguf", "Q4_K_M": "tiny-Q4_K_M.gguf"},
    "size_b": 0.1,
    "provider_config": {"context_window": 512, "gpu_layers": 0},
}
CLOUD_ENTRY: dict[str, Any] = {
    "name": "cloudy",
    "provider": "openai",
    "api_key_env_var": "OPENAI_API_KEY",
    "provider_config": {"model_name": "gpt-x", "max_retries": 1},
}


@pytest.fixture
def folder(settings: Settings, tmp_path: Path) -> Path:
    """A folder of presets beside our own."""
    settings.PRESETS_DIRS = [str(tmp_path)]
    write(tmp_path, "cloud", CLOUD_ENTRY)
    write(tmp_path, "local", HUB_ENTRY)
    return tmp_path


def write(folder: Path, kind: str, *entries: object) -> None:
    (folder / f"{kind}_models.yaml").write_text(yaml.safe_dump(list(entries)))


def register(api: APIClient, preset_name: str, **fields: Any) -> Any:
    return api.post(FROM_PRESET, {"preset_name": preset_name, **fields}, format="json")


# The files


def test_our_own_catalogue_has_no_problems() -> None:
    found = catalogue.read()
    assert found.problems == []
    kinds = [preset.kind for preset in found.presets.values()]
    assert {kind: kinds.count(kind) > 5 for kind in Preset.Kind.values} == dict.fromkeys(
        Preset.Kind.values, True
    )
    for preset in found.presets.values():
        assert provider_class(preset.provider)
        assert preset.files == {} or preset.filename in preset.files.values()


BAD: list[tuple[str, Any, str]] = [
    ("local", HUB_ENTRY | {"size": 1}, "tiny: size: Unknown field"),
    ("local", HUB_ENTRY | {"name": "a b"}, "a b: name: use letters"),
    ("local", HUB_ENTRY | {"provider": "openai"}, 'tiny: provider: "openai" is not a valid choice'),
    ("local", HUB_ENTRY | {"huggingface_repo": "tiny"}, "tiny: huggingface_repo: write owner/name"),
    ("local", HUB_ENTRY | {"filename": "../a.gguf"}, "tiny: filename: name a .gguf file"),
    ("local", HUB_ENTRY | {"filename": "b.gguf"}, "tiny: filename: name one of the files"),
    ("local", HUB_ENTRY | {"files": {"Q9_X!": "tiny-Q8_0.gguf"}}, "tiny: files: Q9_X! is no quant"),
    ("local", HUB_ENTRY | {"vram_requirements": {"Q8_0": "much"}}, "tiny: vram_requirements.Q8_0:"),
    ("local", HUB_ENTRY | {"size_b": "big"}, "tiny: size_b: A valid number is required"),
    ("local", "text", "entry 1: Invalid data"),
    ("cloud", CLOUD_ENTRY | {"api_key": KEY}, "cloudy: api_key: Unknown field"),
    ("cloud", CLOUD_ENTRY | {"api_key_env_var": "SECRET_KEY"}, "cloudy: api_key_env_var: name a v"),
    (
        "cloud",
        CLOUD_ENTRY | {"provider_config": {}},
        "cloudy: provider_config.model_name: say what",
    ),
    ("embedding", {"name": "e", "provider": "embedding"}, "e: dimensions: This field is required"),
    ("local", HUB_ENTRY | {"sha256": {"F16": 64 * "0"}}, "tiny: sha256: name quantizations of `fi"),
    ("local", HUB_ENTRY | {"sha256": {"Q8_0": "0"}}, "tiny: sha256.Q8_0: write 64 hexadecimal d"),
    ("local", HUB_ENTRY | {"name": "presets"}, "presets: name: presets is a route"),
    ("local", HUB_ENTRY | {"vram_requirements": {"Q4_KM": 9}}, "tiny: vram_requirements: Q4_KM is"),
    (
        "local",
        HUB_ENTRY | {"provider_config": {"context_window": 3}},
        "tiny: provider_config.context_window: Ensure this value is greater than or equal to 64",
    ),
    (
        "local",
        HUB_ENTRY | {"provider_config": {"gpu_layer": 1}},
        "tiny: provider_config.gpu_layer: Unknown field",
    ),
    (
        "local",
        HUB_ENTRY | {"provider_config": {"model_path": "other.gguf"}},
        "tiny: provider_config.model_path: it does not belong here",
    ),
    (
        "cloud",
        CLOUD_ENTRY | {"provider_config": {"model_name": "gpt-x", "api_key": KEY}},
        "cloudy: provider_config.api_key: everyone can read a preset",
    ),
    (
        "cloud",
        CLOUD_ENTRY | {"provider": "litellm"},
        "cloudy: provider_config.model_name: Name the provider too",
    ),
    (
        "cloud",
        CLOUD_ENTRY | {"provider": "openai_compatible"},
        "cloudy: provider_config.base_url: Say where the server is",
    ),
]


@pytest.mark.parametrize(("kind", "entry", "problem"), BAD)
def test_problem_names_file_entry_and_field(
    folder: Path, kind: str, entry: Any, problem: str
) -> None:
    write(folder, kind, entry)
    found = catalogue.read()
    [told] = found.problems
    assert told.startswith(f"{kind}_models.yaml: {problem}")
    assert KEY not in told
    others = {"local", "cloud"} - {kind}
    assert {"tiny", "cloudy"} & found.presets.keys() == {
        {"local": "tiny", "cloud": "cloudy"}[other] for other in others
    }


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("name: 1.10", "1.1 is no text: put it in quotes"),
        ("name: 7", "7 is no text: put it in quotes"),
        ("name: no", "False is no text: put it in quotes"),
        ("name: 0x10", "0x10 is no decimal number"),
        ("name: 1:30", "1:30 is no decimal number"),
        ("name: a\n  provider_config: {max_retries: 010}", "010 is no decimal number"),
        ("name: a\n  provider_config: {max_retries: 1_0}", "1_0 is no decimal number"),
        ("name: a\n  provider_config: {timeout: .inf}", ".inf is no decimal number"),
        ("name: a\n  provider_config: {timeout: 1:30.5}", "1:30.5 is no decimal number"),
        ("name: a\n  name: b", "name is there twice: leave one out"),
        ("name: a\n  provider_config: {timeout: 1, timeout: 2}", "timeout is there twice"),
    ],
)
def test_what_yaml_reads_otherwise_than_it_looks_is_refused(
    folder: Path, line: str, problem: str
) -> None:
    (folder / "cloud_models.yaml").write_text(f"- provider: openai\n  {line}\n")
    [told] = catalogue.read().problems
    assert problem in told


def test_decimal_numbers_are_read_as_they_are(folder: Path) -> None:
    config = "{model_name: m, timeout: 1.5, max_retries: 0, context_window: 4096}"
    text = f"- name: a\n  provider: openai\n  provider_config: {config}\n"
    (folder / "cloud_models.yaml").write_text(text)
    found = catalogue.read().presets["a"].provider_config
    assert (found["timeout"], found["max_retries"], found["context_window"]) == (1.5, 0, 4096)


def test_all_problems_are_told_at_once(folder: Path) -> None:
    write(folder, "local", HUB_ENTRY | {"size_b": "x"}, HUB_ENTRY | {"name": "!"}, HUB_ENTRY)
    write(folder, "cloud", CLOUD_ENTRY, CLOUD_ENTRY)
    (folder / "embedding_models.yaml").write_text("- name: [")
    problems = catalogue.read().problems
    assert [problem.split(": ")[1] for problem in problems[:3]] == ["tiny", "!", "cloudy"]
    assert "cloudy: name: another entry has it" in problems[2]
    assert "line 1" in problems[3]


def test_name_is_told_that_two_files_of_a_folder_have(folder: Path) -> None:
    write(folder, "cloud", CLOUD_ENTRY | {"name": "tiny"})
    found = catalogue.read()
    assert found.problems == ["cloud_models.yaml: tiny: name: another entry has it."]
    assert found.presets["tiny"].kind == Preset.Kind.LOCAL


def test_folder_without_presets_is_told(settings: Settings, tmp_path: Path) -> None:
    settings.PRESETS_DIRS = [str(tmp_path / "nowhere")]
    [problem] = catalogue.read().problems
    assert str(tmp_path / "nowhere") in problem


# The rows


@pytest.mark.django_db
def test_loading_follows_the_files(folder: Path) -> None:
    catalogue.load()
    write(folder, "cloud", CLOUD_ENTRY | {"name": "rainy"})
    write(folder, "local", HUB_ENTRY | {"size_b": 0.2})
    catalogue.load()
    assert Preset.objects.get(name="tiny").size_b == 0.2
    names = set(Preset.objects.values_list("name", flat=True))
    assert "rainy" in names
    assert "cloudy" not in names


@pytest.mark.django_db
def test_later_folder_goes_before_our_own(folder: Path) -> None:
    write(folder, "local", HUB_ENTRY | {"name": "phi-4"})
    catalogue.load()
    assert Preset.objects.get(name="phi-4").huggingface_repo == "org/tiny-GGUF"


@pytest.mark.django_db
def test_broken_file_takes_nothing_away(folder: Path) -> None:
    catalogue.load()
    write(folder, "local", HUB_ENTRY | {"size_b": "x"})
    err = StringIO()
    with pytest.raises(CommandError, match="tiny: size_b"):
        call_command("load_presets", stdout=err)
    assert Preset.objects.filter(name="tiny").exists()


def test_edited_preset_is_not_overwritten_until_it_is_put_back(
    folder: Path, admin_client: Client
) -> None:
    catalogue.load()
    preset = Preset.objects.get(name="cloudy")
    url = reverse("admin:presets_preset_change", args=[preset.pk])
    form = {
        "name": "cloudy",
        "kind": "cloud",
        "provider": "openai",
        "description": "Mine.",
        "api_key_env_var": "MY_API_KEY",
        "files": "{}",
        "vram_requirements": "{}",
        "provider_config": '{"model_name": "gpt-y"}',
    }
    page = admin_client.post(url, form | {"api_key_env_var": "SECRET_KEY"})
    assert "name a variable that ends in _API_KEY" in page.content.decode()
    page = admin_client.post(url, form | {"source": "hub", "provider_config": '{"timeout": 0}'})
    assert page.status_code == 200
    errors = page.context["adminform"].form.errors
    assert errors.keys() == {"source"}
    page = admin_client.post(url, form | {"provider_config": "", "files": "[1]"})
    assert page.context["adminform"].form.errors.keys() == {"files"}
    page = admin_client.post(url, form | {"provider_config": ""})
    assert page.context["adminform"].form.errors.keys() == {"provider_config"}
    form |= {"files": ""}
    page = admin_client.post(url, form | {"provider_config": '{"model_name": "a", "timeout": 0}'})
    assert "timeout: Ensure this value is" in page.content.decode()
    assert admin_client.post(url, form).status_code == 302
    catalogue.load()
    preset.refresh_from_db()
    assert (preset.api_key_env_var, preset.is_edited) == ("MY_API_KEY", True)
    action = {"action": "back_to_the_catalogue", "_selected_action": [preset.pk]}
    admin_client.post(reverse("admin:presets_preset_changelist"), action)
    preset.refresh_from_db()
    assert (preset.api_key_env_var, preset.is_edited) == ("OPENAI_API_KEY", False)


@pytest.mark.parametrize(
    ("fields", "unpinned"),
    [
        ({}, True),
        ({"revision": "main"}, True),
        ({"revision": 40 * "a"}, False),
        ({"sha256": {"Q8_0": 64 * "0"}}, True),
        ({"sha256": {"Q8_0": 64 * "0", "Q4_K_M": 64 * "1"}}, False),
    ],
)
def test_preset_is_pinned_by_a_commit_or_by_hashes(
    folder: Path, fields: dict[str, Any], unpinned: bool
) -> None:
    write(folder, "local", HUB_ENTRY | fields)
    assert catalogue.read().presets["tiny"].unpinned is unpinned


# The routes


@pytest.fixture
def _loaded(db: None, folder: Path) -> None:
    catalogue.load()


@pytest.mark.usefixtures("_loaded")
def test_presets_are_listed_by_kind(
    api: APIClient, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    RegisteredModel.objects.create(name="cloudy", provider="echo")
    with django_assert_max_num_queries(2):
        body = api.get(f"{MODELS}/presets").json()
    for kind in Preset.Kind.values:
        assert body[f"total_{kind}"] == len(body[f"{kind}_models"]) > 5
    found = {preset["name"]: preset for preset in body["cloud_models"]}
    assert found["cloudy"]["registered"] is True
    assert found["cloudy"]["provider_config"]["model_name"] == "gpt-x"
    assert found["cloudy"]["downloaded"] is None
    local = {preset["name"]: preset for preset in body["local_models"]}
    tiny = local["tiny"]
    assert (tiny["registered"], tiny["files"]["Q4_K_M"]) == (False, "tiny-Q4_K_M.gguf")
    assert (tiny["unpinned"], local["smollm2-135m-instruct"]["unpinned"]) == (True, False)
    assert (tiny["downloaded"], local["smollm2-135m-instruct"]["downloaded"]) == (False, True)


@pytest.mark.usefixtures("_loaded")
def test_cloud_preset_is_registered_with_its_variable_or_a_key(api: APIClient) -> None:
    body = register(api, "cloudy").json()
    assert (body["name"], body["provider"], body["status"]) == ("cloudy", "openai", "available")
    assert body["api_key_source"] == "environment"
    body = register(api, "cloudy", name="other", api_key=KEY)
    assert body.json()["api_key_source"] == "registration"
    assert KEY not in body.content.decode()
    assert_error(register(api, "cloudy"), 409, "conflict")


@pytest.mark.usefixtures("_loaded")
def test_packaged_presets_are_there_at_once(api: APIClient) -> None:
    body = register(api, "smollm2-135m-instruct", name="smol").json()
    assert (body["status"], body["extra"]["architecture"]) == ("available", "llama")
    body = register(api, "all-minilm-l6-v2", name="minilm").json()
    assert (body["status"], body["provider"]) == ("available", "embedding")


@pytest.mark.usefixtures("_loaded")
def test_preset_of_the_hub_is_downloaded_unless_that_waits(api: APIClient) -> None:
    body = register(api, "tiny", quantization="Q4_K_M").json()
    assert (body["status"], body["context_window"]) == ("downloading", 512)
    assert body["config"]["filename"] == "tiny-Q4_K_M.gguf"
    assert "sha256" not in body["config"]
    assert ModelDownload.objects.filter(model__name="tiny").exists()
    assert body["extra"] == {"parameters": 100_000_000, "quantization": "Q4_K_M"}
    body = register(api, "tiny", name="later", auto_download=False).json()
    assert (body["status"], body["config"]["filename"]) == ("registered", "tiny-Q8_0.gguf")
    for name, word in (("tiny", "being downloaded"), ("later", "models/load")):
        response = api.post("/api/v1/tasks", {"model": name, "prompt": "a"}, format="json")
        assert_error(response, 400, "validation_error", "model")
        assert word in response.json()["message"]


@pytest.mark.usefixtures("_loaded")
def test_file_of_the_hub_that_is_here_is_not_downloaded(
    api: APIClient, smollm2_file: Path, settings: Settings, tmp_path: Path
) -> None:
    settings.MODELS_DIR = tmp_path
    (tmp_path / "tiny-Q8_0.gguf").symlink_to(tmp_path / "weights")
    (tmp_path / "weights").write_bytes(smollm2_file.read_bytes())
    body = register(api, "tiny").json()
    assert (body["status"], body["extra"]["architecture"]) == ("available", "llama")
    [tiny] = (
        preset
        for preset in api.get(f"{MODELS}/presets").json()["local_models"]
        if preset["name"] == "tiny"
    )
    assert (tiny["registered"], tiny["downloaded"]) == (True, True)
    (tmp_path / "tiny-Q4_K_M.gguf").write_bytes(b"no weights")
    response = register(api, "tiny", name="broken", quantization="Q4_K_M")
    assert_error(response, 400, "validation_error", "model_path")


@pytest.mark.usefixtures("_loaded")
@pytest.mark.parametrize(
    ("fields", "blamed"),
    [
        ({"quantization": "Q6_K"}, "quantization"),
        ({"quantization": "best"}, "quantization"),
        ({"name": "presets"}, "name"),
        ({"name": "a b"}, "name"),
        ({"api_key": KEY}, "api_key"),
        ({"autodownload": False}, "autodownload"),
    ],
)
def test_bad_registration_is_refused_by_the_field(
    api: APIClient, fields: dict[str, Any], blamed: str
) -> None:
    response = register(api, "tiny", **fields)
    assert_error(response, 400, "validation_error", blamed)
    assert KEY not in response.content.decode()
    assert not RegisteredModel.objects.exists()


@pytest.mark.usefixtures("_loaded")
def test_unknown_preset_is_not_found(api: APIClient) -> None:
    assert_error(register(api, "gone"), 404, "not_found")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("preset_name", ["cloudy", "tiny", "smollm2-135m-instruct"])
def test_of_registrations_at_once_one_wins(
    folder: Path, api: APIClient, settings: Settings, preset_name: str
) -> None:
    settings.MODELS_DIR = folder / "models"
    settings.MODELS_DIR.mkdir()
    catalogue.load()
    barrier = threading.Barrier(4)
    answers: list[int] = []

    def race() -> None:
        barrier.wait()
        answers.append(register(client_of(LOCAL), preset_name).status_code)
        connection.close()

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [201, 409, 409, 409]
    assert [path.suffix for path in settings.MODELS_DIR.iterdir()] in ([], [".gguf"])
