"""Each operation of /openapi.json, tried with its own example, in the order of the description."""

import re
from typing import Any

import httpx
import pytest

from benchmarks.running_service import RunningService, wait_for
from tests.described_client import misfit

# What the path of an operation names is made anew for it: by which operation, and the name's place.
MADE_BY = {
    "tasks": ("tasks_create", "task_id"),
    "conversations": ("conversations_create", "conversation_id"),
    "keys": ("keys_create", "prefix"),
    "responses": ("v1_responses_create", "id"),
    "files": ("v1_files_create", "id"),
    "batches": ("v1_batches_create", "id"),
}
# Operations on something that has ended.
NEED_AN_ANSWER = {
    *("tasks_destroy", "tasks_requeue_create", "tasks_diff_retrieve", "tasks_export_retrieve"),
    "v1_responses_destroy",
}
# Models that the examples register.
REGISTERED = ("claude", "gpt-5.4-mini")
# Members whose own members are anybody's.
FREE = {"config", "extra", "metadata", "params", "provider_config", "data", "models", "by_priority"}
FREE |= {"files", "sha256", "vram_requirements", "messages", "content"}
# Those of a comparison are what two tasks have.
FREE |= {"parameters", "provenance", "metrics"}


class Examples:
    """Sends the examples of a description to its service."""

    def __init__(self, service: RunningService) -> None:
        self.http = httpx.Client(base_url=service.base_url, timeout=60, trust_env=False)
        self.operations: dict[str, tuple[str, str, Any]] = {
            operation["operationId"]: (method, path, operation)
            for path, methods in self.http.get("/openapi.json").json()["paths"].items()
            for method, operation in methods.items()
        }

    def send(self, name: str) -> httpx.Response:
        """The answer to an operation's example."""
        method, path, _ = self.operations[name]
        is_cancel = "cancel" in name
        if found := re.search(r"(\w+)/\{\w+\}", path):
            made = "claude" if name == "models_destroy" else "smollm2-135m-instruct"
            if found[1] in MADE_BY:
                made = self._make(found[1], is_slow=is_cancel)
            if name in NEED_AN_ANSWER:
                own = re.sub(r"\{.*", made, path)
                wait_for(lambda: self.http.get(own).json()["status"] == "completed")
            path = re.sub(r"\{\w+\}", made, path)
        return self.http.request(method, path, **self._body(name))

    def _make(self, what: str, *, is_slow: bool) -> str:
        name, member = MADE_BY[what]
        method, path, _ = self.operations[name]
        response = self.http.request(method, path, **self._body(name, is_slow=is_slow))
        return str(response.raise_for_status().json()[member])

    def _body(self, name: str, *, is_slow: bool = False) -> dict[str, Any]:
        contents = self.operations[name][2].get("requestBody", {}).get("content", {})
        for media_type, content in contents.items():
            body = content["example"]
            if "multipart" in media_type:
                text = body["file"]
                if is_slow:
                    text = text.replace("smollm2-135m-instruct", "slow-echo")
                upload = {"file": ("requests.jsonl", text)}
                return {"data": {"purpose": body["purpose"]}, "files": upload}
            if "input_file_id" in body:
                body = body | {"input_file_id": self._make("files", is_slow=is_slow)}
            if is_slow and "model" in body:
                body = body | {"model": "slow-echo"}
            return {"json": body}
        return {}


def unlike(example: Any, answer: Any, where: str = "") -> list[str]:
    """The members that one of them has, and the other has not."""
    if isinstance(example, list) and isinstance(answer, list):
        return unlike(example[0], answer[0], f"{where}[]") if example and answer else []
    if not isinstance(example, dict) or not isinstance(answer, dict):
        return []
    found = [f"{where}.{name}" for name in example.keys() ^ answer.keys()]
    for name in example.keys() & answer.keys() - FREE:
        if where == "" and name == "results" and isinstance(example[name], dict):
            continue  # of a comparison too
        found += unlike(example[name], answer[name], f"{where}.{name}")
    return found


@pytest.mark.timeout(300)
def test_every_example_is_answered_as_described(service: RunningService) -> None:
    examples, failures = Examples(service), {}
    try:
        for name, (_, _, operation) in examples.operations.items():
            response = examples.send(name)
            if failure := _failure(operation, response):
                failures[name] = f"{response.status_code}: {failure}; {response.text[:300]}"
    finally:
        for name in REGISTERED:
            service.http.delete(f"/models/{name}")
    assert not failures, "\n".join(f"{name}: {failure}" for name, failure in failures.items())


def _failure(operation: Any, response: httpx.Response) -> str:
    """How an answer differs from what an operation describes; "" if it does not."""
    described = operation["responses"].get(str(response.status_code))
    if response.is_error or described is None:
        return "refused, or not described"
    if response.status_code == 204:
        return ""
    media_type = response.headers["Content-Type"].partition(";")[0]
    content = described["content"].get(media_type)
    if content is None:
        return f"{media_type} is not described"
    example = content["example"]
    if media_type != "application/json":
        return "" if example.splitlines()[0] in response.text else "another text"
    if error := misfit(content["schema"], response.json()):
        return str(error.message)
    return ", ".join(unlike(example, response.json()))
