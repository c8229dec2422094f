"""A client that openapi-python-client generates from the service's own description."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import API_KEY, ECHO

# Lines of JSON are bytes to it, and the formatter of what it has written is not needed.
CONFIG = "content_type_overrides: {application/jsonl: application/octet-stream}\npost_hooks: []\n"


@pytest.fixture(scope="module")
def package(service_url: str, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The generated package; warnings, as of what the generator leaves out, are failures."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.yaml").write_text(CONFIG)
    command = [Path(sys.executable).with_name("openapi-python-client"), "generate"]
    command += ["--url", f"{service_url}/openapi.json", "--config", str(folder / "config.yaml")]
    command += ["--meta", "none", "--output-path", str(folder / "sopllm_client")]
    done = subprocess.run(
        [*command, "--fail-on-warning"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    return importlib.import_module("sopllm_client")


@pytest.fixture
def client(package: ModuleType, service_url: str) -> Any:
    return package.AuthenticatedClient(base_url=service_url, token=API_KEY, timeout=60)


def route(name: str) -> ModuleType:
    """A route, such as `tasks_create`, in whatever group."""
    api = importlib.import_module("sopllm_client.api")
    [path] = Path(str(api.__file__)).parent.rglob(f"{name}.py")
    return importlib.import_module(f"sopllm_client.api.{path.parent.name}.{name}")


def test_every_module_can_be_imported(package: ModuleType) -> None:
    folder = Path(str(package.__file__)).parent
    for path in (folder / "api").rglob("*.py"):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        importlib.import_module(".".join(part for part in parts if part != "__init__"))


def test_task_is_submitted_waited_for_and_listed(client: Any) -> None:
    models = importlib.import_module("sopllm_client.models")
    body = models.TaskSubmission(model=ECHO, prompt="One two")
    made = route("tasks_create").sync(client=client, body=body)
    task = route("tasks_retrieve").sync(made.task_id, client=client, wait=30)
    assert task.status == "completed"
    assert task.result.text == "One two"
    page = route("tasks_list").sync(client=client, model=ECHO, limit=100)
    assert made.task_id in [each.task_id for each in page.results]
    report = route("tasks_report_retrieve").sync(made.task_id, client=client)
    assert report.task.task_id == made.task_id


def test_routes_of_openai(client: Any) -> None:
    models = importlib.import_module("sopllm_client.models")
    found = route("v1_models_list").sync(client=client)
    assert ECHO in [model.id for model in found.data]
    message = models.NewMessage.from_dict({"role": "user", "content": "One two"})
    body = models.ChatCompletionRequest(model=ECHO, messages=[message])
    answer = route("v1_chat_completions_create").sync(client=client, body=body)
    assert answer.choices[0].message.content == "One two"


def test_error_is_what_the_description_says(client: Any) -> None:
    gone = route("tasks_retrieve").sync_detailed("task_none", client=client)
    assert (gone.status_code, gone.parsed.error) == (404, "not_found")
