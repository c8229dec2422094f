"""Each class of errors of the SDKs, each met for real.

The service of these tests takes bodies of 100 kB, files of 1 MB and two pending tasks, and the
worker of its local models is stopped.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from conftest import API_KEY, CHAT_MODEL, ECHO, SLOW_ECHO

USER: Any = {"role": "user", "content": "One two three four five six seven"}
SDKS = {"openai": openai, "anthropic": anthropic}
SCHEMA = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}
NODE = shutil.which("node")
# Of a case, beside the fields of a body.
_OF_CASES = ("key", "headers", *SDKS)

# By name: the class and status that it is to meet, and what is asked, `openai` and `anthropic` for
# one of them alone. A model `cloud-503` is one whose provider answers with this status.
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "field": ("BadRequestError", 400, {"temperature": 9}),
    "key": ("AuthenticationError", 401, {"key": f"sopllm_00000000_{'x' * 43}"}),
    "scope": ("PermissionDeniedError", 403, {"key": "monitor"}),
    "model": ("NotFoundError", 404, {"model": "none-such"}),
    "conflict": ("ConflictError", 409, {"headers": {"Idempotency-Key": "taken"}}),
    "body": ("APIStatusError", 413, {"messages": [USER | {"content": "x" * 200_000}]}),
    "limit": ("RateLimitError", 429, {"key": "none-pending", "model": CHAT_MODEL}),
    "provider limits": ("RateLimitError", 429, {"model": "cloud-429"}),
    "result": (
        "InternalServerError",
        500,
        {
            "model": "cloud-200",
            "openai": {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "person", "schema": SCHEMA},
                }
            },
            "anthropic": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        },
    ),
    "provider refuses": ("InternalServerError", 502, {"model": "cloud-401"}),
    "provider is down": ("InternalServerError", 503, {"model": "cloud-503"}),
    "time limit": ("InternalServerError", 504, {"model": SLOW_ECHO, "timeout_seconds": 1}),
    "no worker": ("InternalServerError", 504, {"model": CHAT_MODEL, "deadline_seconds": 1}),
}


class Cloud(BaseHTTPRequestHandler):
    """A provider that answers with the status that the model's name is."""

    calls: Counter[str] = Counter()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        model = json.loads(self.rfile.read(length))["model"]
        self.calls[model] += 1
        delta = {"index": 0, "delta": {"content": "no JSON"}, "finish_reason": "stop"}
        body = json.dumps({"id": "1", "object": "chat.completion.chunk", "choices": [delta]})
        is_ok = model == "200"
        self.send_response(int(model))
        self.send_header("Content-Type", "text/event-stream" if is_ok else "application/json")
        self.end_headers()
        content = f"data: {body}\n\ndata: [DONE]\n\n" if is_ok else '{"error": {"message": "no"}}'
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def cloud() -> Iterator[type[Cloud]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cloud)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Cloud.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield Cloud
    server.shutdown()


@pytest.fixture(scope="module")
def operator(service_url: str) -> Iterator[httpx.Client]:
    """Somebody on the service's own machine, who may do everything."""
    with httpx.Client(base_url=f"{service_url}/api/v1", timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def keys(operator: httpx.Client, cloud: Any) -> dict[str, str]:
    """By name; `none` is for the service's own machine. Registers the models too."""
    register(operator, ECHO, "echo")
    register(operator, SLOW_ECHO, "echo", delay_ms=300)
    for status in ("200", "401", "429", "503"):
        config = {"model_name": status, "base_url": cloud.url, "max_retries": 0}
        register(operator, f"cloud-{status}", "openai_compatible", **config)
    task = {"model": ECHO, "prompt": "x", "idempotency_key": "taken"}
    operator.post("/tasks", json=task).raise_for_status()
    return {
        "none": API_KEY,
        "monitor": make_key(operator, scopes=["monitor"]),
        "none-pending": make_key(operator, scopes=["tasks"], max_pending_tasks=0),
    }


def register(operator: httpx.Client, name: str, provider: str, **config: Any) -> None:
    body = {"name": name, "provider": provider, "config": config}
    operator.post("/models/register", json=body).raise_for_status()


def make_key(operator: httpx.Client, **fields: Any) -> str:
    made = operator.post("/keys", json={"owner": "clients", **fields}).raise_for_status()
    return str(made.json()["key"])


@pytest.fixture(params=SDKS)
def sdk(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(sdk: str, service_url: str, keys: dict[str, str]) -> Callable[..., Any]:
    """Makes a client of the SDK, for a key by its name."""

    def made(key: str = "none", **options: Any) -> Any:
        options = {"api_key": keys.get(key, key), "max_retries": 0, **options}
        if sdk == "openai":
            return openai.OpenAI(**{"base_url": f"{service_url}/v1", **options})
        return anthropic.Anthropic(**{"base_url": service_url, **options})

    return made


def ask(client: Any, model: str = ECHO, **fields: Any) -> Any:
    asked = {"model": model, "messages": [USER], "max_tokens": 50, **fields}
    if isinstance(client, openai.OpenAI):
        return client.chat.completions.with_raw_response.create(**asked)
    return client.messages.with_raw_response.create(**asked)


@pytest.mark.parametrize("name", CASES)
def test_error(sdk: str, connect: Callable[..., Any], name: str) -> None:
    kind, status, case = CASES[name]
    fields = {field: value for field, value in case.items() if field in ("model", "messages")}
    extra = {field: value for field, value in case.items() if field not in (*_OF_CASES, *fields)}
    extra |= case.get(sdk, {})
    client = connect(case.get("key", "none"))
    with pytest.raises(getattr(SDKS[sdk], kind)) as caught:
        ask(client, **fields, extra_body=extra, extra_headers=case.get("headers"))
    assert caught.value.status_code == status
    assert len(caught.value.message) > 10


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_errors_of_openai_for_node(base_url: str, keys: dict[str, str]) -> None:
    cases = []
    for kind, status, case in CASES.values():
        body = {"model": ECHO, "messages": [USER], **case, **case.get("openai", {})}
        body = {field: value for field, value in body.items() if field not in _OF_CASES}
        key = case.get("key", "none")
        error = "APIError" if kind == "APIStatusError" else kind
        cases.append((error, status, keys.get(key, key), case.get("headers", {}), body))
    variables = {"BASE_URL": base_url, "PACKAGES": sys.prefix}
    done = subprocess.run(
        [str(NODE), str(Path(__file__).with_name("errors.mjs"))],
        env=os.environ | variables,
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_file_that_is_too_large(connect: Callable[..., Any], sdk: str) -> None:
    if sdk == "anthropic":
        pytest.skip("there are no files of Anthropic's")
    with pytest.raises(openai.APIStatusError) as caught:
        connect().files.create(file=("lines.jsonl", b"x" * 2_000_000), purpose="batch")
    assert caught.value.status_code == 413


def test_failed_task_is_not_asked_for_again(
    connect: Callable[..., Any], cloud: Any, sdk: str
) -> None:
    num_calls = cloud.calls["401"]
    with pytest.raises(SDKS[sdk].InternalServerError):
        ask(connect(max_retries=3), "cloud-401")
    assert cloud.calls["401"] == num_calls + 1


def test_retry_waits_as_long_as_the_limit_says(
    connect: Callable[..., Any], operator: httpx.Client, sdk: str
) -> None:
    key = make_key(operator, scopes=["tasks"], requests_per_second=0.4)
    with connect(key) as client, pytest.raises(SDKS[sdk].RateLimitError) as caught:
        [ask(client) for _ in range(10)]
    wait = float(caught.value.response.headers["retry-after"])
    assert wait > 2  # the SDK's own first pause is half a second
    with connect(key, max_retries=5) as client:
        assert ask(client).retries_taken == 1


def test_full_queue(connect: Callable[..., Any], operator: httpx.Client, sdk: str) -> None:
    tasks: list[Any] = []
    # Each web process counts once a second how many are pending: it may know too late of room, or
    # of none. A chat that is let in has no worker, and ends at its deadline.
    while len(tasks) < 2:
        made = operator.post("/tasks", json={"model": CHAT_MODEL, "prompt": "x"})
        tasks += [made.json()] if made.is_success else []
    try:
        status = 504
        while status == 504:
            with pytest.raises(SDKS[sdk].InternalServerError) as caught:
                ask(connect(), CHAT_MODEL, extra_body={"deadline_seconds": 1})
            status = caught.value.status_code
    finally:
        for task in tasks:
            cancel(operator, task["task_id"])
    assert status == 503
    assert float(caught.value.response.headers["retry-after"]) > 0
    # Until it is counted anew, by each web process, the SDK waits as it is told to.
    for _ in range(8):
        assert ask(connect(max_retries=3)).retries_taken <= 1


def cancel(operator: httpx.Client, task_id: str) -> None:
    operator.post(f"/tasks/{task_id}/cancel").raise_for_status()


def test_client_that_does_not_wait(connect: Callable[..., Any], sdk: str) -> None:
    with pytest.raises(SDKS[sdk].APITimeoutError):
        ask(connect(timeout=0.5), SLOW_ECHO)


def test_nobody_is_there(connect: Callable[..., Any], sdk: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SDKS[sdk].APIConnectionError):
        ask(connect(base_url=f"http://127.0.0.1:{port}"))


def test_stream_that_breaks_off(
    connect: Callable[..., Any], operator: httpx.Client, sdk: str
) -> None:
    raw = ask(connect(), SLOW_ECHO, stream=True)
    stream = iter(raw.parse())
    next(stream)
    cancel(operator, raw.headers["x-task-id"])
    with pytest.raises(SDKS[sdk].APIError, match="cancelled"):
        list(stream)
