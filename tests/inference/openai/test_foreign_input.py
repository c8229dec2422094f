"""Whatever a client sends to /v1 is answered, or refused in the shape that its SDK reads."""

import json
import logging
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from inference.models import Batch, RegisteredModel
from inference.openai.batches.lines import Line, LineError, parse

pytestmark = pytest.mark.django_db(transaction=True)

TOOL = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CHAT: dict[str, Any] = {
    "model": "cloud",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ],
    "tools": [{"type": "function", "function": TOOL}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "max_completion_tokens": 5,
    "n": 2,
    "stop": ["."],
    "logit_bias": {"5": 1},
    "logprobs": True,
    "top_logprobs": 2,
    "seed": 1,
    "metadata": {"a": "b"},
    "user": "me",
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "echo", "prompt": ["Hi", "Ho"], "max_tokens": 5, "stop": "."},
    "/v1/responses": {
        "model": "cloud",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ],
        "tools": [{"type": "function", **TOOL}],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        "reasoning": {"effort": "low"},
        "background": True,
        "conversation": {"id": "conv_1"},
        "include": ["message.output_text.logprobs"],
    },
    "/v1/messages": {
        "model": "cloud",
        "max_tokens": 5,
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c", "name": "w", "input": {}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": "x"}],
            },
        ],
        "tools": [{"name": "w", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["."],
    },
    "/v1/embeddings": {"model": "vectors", "input": ["a", "b"], "encoding_format": "base64"},
    "/v1/rerank": {"model": "vectors", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1},
    "/v1/batches": {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"a": "b"},
    },
}
deep: Any = []
for _ in range(400):
    deep = [deep]
HOSTILE = st.sampled_from(
    [
        *(None, True, 0, -1, 1.5, 1e308, -1e308, 10**30, 10**400, float("nan"), float("inf")),
        *("", " ", "\0", "a\0b", "\ud800", "\ud83d", "\U0010ffff", "x" * 100_000, "1", "true"),
        *([], {}, [None], {"": None}, {"\0": 1}, {"\ud800": 1}, {"type": "text"}, [[]], deep),
        *({"$ref": "#"}, [{}] * 10_001, {str(number): number for number in range(200)}),
    ]
).map(deepcopy)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["X-Priority", "Idempotency-Key", "Prefer", "Accept", "Last-Event-ID", "X-Task-Id", "Range"]
    ),
    st.sampled_from(
        [
            *("", " ", "abc", "nan", "inf", "1e400", "-0", "٣", "101", "k" * 10_000, "wait=9" * 99),
            *("text/event-stream", "*/*;q=x", "\xff\xfe", "\0", "a\x7fb", ";,=", "bytes=0-"),
        ]
    ),
    max_size=3,
)
many = settings(suppress_health_check=[*HealthCheck])


@pytest.fixture
def client(echo: RegisteredModel, api: APIClient) -> APIClient:
    """With a model of each kind; what a view does not expect is an answer, as in the service."""
    RegisteredModel.objects.create(name="cloud", provider="openai", config={"model_name": "m"})
    RegisteredModel.objects.create(name="vectors", provider="embedding", config={"model_name": "m"})
    api.raise_request_exception = False
    return api


def assert_answered(response: Any, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Done, or refused in the SDK's shape; nothing in the log."""
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    status = response.status_code
    assert 200 <= status < 500, (status, response.content[:1000])
    if status >= 400:
        body = response.json()
        error = body["error"]
        if path.startswith("/v1/messages"):
            assert body["type"] == "error"
            assert error.keys() == {"type", "message"}
        else:
            assert error.keys() == {"message", "type", "param", "code"}
        assert 0 < len(error["message"]) < 5000


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[str, Any]:
    """A path, and a body for it of which one to three members are something else, or gone."""
    path = draw(st.sampled_from([*BODIES]))
    body = deepcopy(BODIES[path])
    for _ in range(draw(st.integers(1, 3))):
        _spoil(draw, body)
    return path, body


def _spoil(draw: st.DrawFn, container: Any) -> None:
    """Change a member, of the container or of one in it."""
    names = list(range(len(container))) if isinstance(container, list) else [*container]
    if not names:
        return
    name = draw(st.sampled_from(names))
    member = container[name]
    if isinstance(member, dict | list) and len(member) < 100 and draw(st.integers(0, 2)):
        _spoil(draw, member)
    elif isinstance(container, dict) and draw(st.integers(0, 9)) == 0:
        del container[name]
    elif isinstance(member, str) and draw(st.booleans()):
        near = draw(st.sampled_from(["\x80{}", "{}\n", "{0}{0}", "/{}?", "{}\0"]))
        container[name] = near.format(member)
    else:
        container[name] = draw(HOSTILE)


@many
@given(spoiled())
def test_any_body(
    client: APIClient, caplog: pytest.LogCaptureFixture, asked: tuple[str, Any]
) -> None:
    path, body = asked
    response = client.generic("POST", path, json.dumps(body), content_type="application/json")
    assert_answered(response, path, caplog)


@many
@given(st.sampled_from([*BODIES]), st.data())
def test_any_bytes(
    client: APIClient, caplog: pytest.LogCaptureFixture, path: str, data: Any
) -> None:
    text = json.dumps(BODIES[path]).encode()
    where = data.draw(st.integers(0, len(text)))
    spoil = data.draw(
        st.sampled_from(
            [
                b"",
                b"\0",
                b"\xff",
                b"\xed\xa0\x80",
                b"NaN",
                b'"a":1,"a":2,',
                b"{" * 5000,
                b"[" * 99_999,
            ]
        )
    )
    rest = data.draw(st.sampled_from([text[where:], b""]))
    content_type = data.draw(
        st.sampled_from(
            [
                *("application/json", "application/json; charset=utf-16", "text/plain", "", "a/b;"),
                *("multipart/form-data", "application/x-www-form-urlencoded", "a/b;\xff"),
            ]
        )
    )
    response = client.generic("POST", path, text[:where] + spoil + rest, content_type=content_type)
    assert_answered(response, path, caplog)


@many
@given(st.sampled_from([*BODIES]), HEADERS)
def test_any_header(
    client: APIClient, caplog: pytest.LogCaptureFixture, path: str, headers: dict[str, str]
) -> None:
    response = client.post(path, BODIES[path], format="json", headers=headers)
    assert_answered(response, path, caplog)


DISPOSITION = 'form-data; name="file"; filename="a"'


@many
@given(
    st.sampled_from(["--b\r\n", "--c\r\n", "", "--b--\r\n"]),
    st.sampled_from(
        [
            *(DISPOSITION, 'form-data; name="file"', 'form-data; filename="a"', "form-data", ""),
            *('form-data; name="purpose"; filename="p"', "form-data; name*=utf-8''%00"),
            *('form-data; name="file"; filename="\0"', 'form-data; name="file"; filename="../.."'),
            *('form-data; name="file"; filename=""', f'form-data; name="{"n" * 9000}"'),
            *("form-data; name=\"file\"; filename*=utf-8''%ff%ed%a0%80", '\xff; name="file"'),
        ]
    ),
    st.sampled_from(["", "Content-Transfer-Encoding: base64\r\n", "Content-Type: \0\r\n", "x\r\n"]),
    st.sampled_from([b"", b"{}\n", b"\0\xff", b"=" * 1000, b"{}\n" * 50_000]),
    st.sampled_from(["batch", "fine-tune", "", "\0", "b" * 5000]),
    st.sampled_from(["\r\n--b--\r\n", "\r\n--b--", "", "\r\n--b\r\n"]),
    st.sampled_from(
        [
            *(
                "multipart/form-data; boundary=b",
                "multipart/form-data",
                "multipart/mixed; boundary=b",
            ),
            *("multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 300, ""),
        ]
    ),
)
@example("", "", "", b"", "", "", "")
def test_any_form(
    client: APIClient,
    caplog: pytest.LogCaptureFixture,
    begin: str,
    disposition: str,
    more: str,
    content: bytes,
    purpose: str,
    end: str,
    content_type: str,
) -> None:
    head = f"{begin}Content-Disposition: {disposition}\r\n{more}\r\n".encode("latin-1", "replace")
    field = '\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose + end
    body: Any = head + content + field.encode()
    response = client.generic("POST", "/v1/files", body, content_type=content_type)
    assert_answered(response, "/v1/files", caplog)


@many
@given(
    st.sampled_from(["/v1/files", "/v1/batches", "/v1/responses/resp_1", "/v1/models"])
    | st.text(max_size=20).map(lambda text: f"/v1/models/{text or 'x'}"),
    st.sampled_from(["after", "limit", "order", "purpose", "stream", "starting_after", "x\0"]),
    st.sampled_from(["", "0", "-1", "9" * 50, "\0", "\ud800", "٣", "1e9", "true", "file-1", "%00"]),
)
def test_any_address(
    client: APIClient, caplog: pytest.LogCaptureFixture, path: str, name: str, value: str
) -> None:
    query = {name: value.encode("utf-8", "surrogatepass")}
    assert_answered(client.get(path, query), path, caplog)


@many
@given(spoiled(), st.sampled_from([b"", b"\0", b"\xff", b"}", b"[" * 99_999, b"\xef\xbb\xbf"]))
def test_any_line_of_a_batch(client: APIClient, asked: tuple[str, Any], spoil: bytes) -> None:
    path, body = asked
    request = {"custom_id": "a", "method": "POST", "url": path, "body": body}
    line = Line(2, 9, spoil + json.dumps(request).encode())
    try:
        parse(line, Batch(endpoint=path))
    except LineError as error:
        told = error.at(line)
        assert 0 < len(told["message"].encode()) < 5000
