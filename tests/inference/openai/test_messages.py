"""POST /v1/messages, up to the queue and back."""

import json
from typing import Any

import pytest
from rest_framework.test import APIClient

from inference.errors import ErrorCode
from inference.lifecycle import claim, finish
from inference.models import GenerationTask, RegisteredModel
from monitoring.streams.delta_stream import DeltaWriter
from tests.conftest import Valkey
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer
from tests.inference.openai.worker import End, ask, completing, failing

pytestmark = pytest.mark.django_db(transaction=True)

MESSAGES = "/v1/messages"
BODY: dict[str, Any] = {
    "model": "echo",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hi"}],
}
TOOL = {
    "name": "weather",
    "description": "Of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"a":1}'},
}
TOOL_USE = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"a": 1}}
TOOL_RESULT = {"type": "tool_result", "tool_use_id": "call_1"}


@pytest.fixture(autouse=True)
def _model(valkey: Valkey, echo: RegisteredModel) -> None:
    """Every test has a broker, and a model for all that an echo cannot do."""
    RegisteredModel.objects.create(name="cloud", provider="openai", config={"model_name": "m"})


def only_task() -> GenerationTask:
    return GenerationTask.objects.get()


def with_turns(*turns: Any) -> dict[str, Any]:
    return BODY | {"messages": list(turns)}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def ending_with(text: str, reason: str = "stop", **fields: Any) -> End:
    """Completes with a text and what else a result may have."""

    def end(task: GenerationTask) -> None:
        lease = claim.claim(task.pk)
        assert lease is not None
        result: Any = answer(text, reason) | fields
        finish.complete(lease, result, TIMINGS)

    return end


def thinking_and_calling(task: GenerationTask) -> None:
    """Streams all kinds of deltas, and completes with them."""
    lease = claim.claim(task.pk)
    assert lease is not None
    writer = DeltaWriter(task.pk, lease.attempt)
    writer.write_reasoning("Hm.")
    writer.write("So it is")
    function = CALL["function"]
    start = {"index": 0, "id": CALL["id"], "type": "function"}
    writer.write_tool_call(start | {"function": {"name": function["name"], "arguments": ""}})
    for part in ('{"a"', ":1}"):
        writer.write_tool_call({"index": 0, "function": {"arguments": part}})
    writer.flush()
    result: Any = answer("So it is", "tool_calls")
    result |= {"reasoning_content": "Hm.", "tool_calls": [CALL]}
    finish.complete(lease, result, TIMINGS)


def events(text: str) -> list[Any]:
    """The data of a stream's events, each of which is named like its type."""
    found = []
    for event in filter(None, text.split("\n\n")):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_answer_has_the_shape_of_anthropic() -> None:
    response = ask(MESSAGES, BODY, completing("an answer"))
    task = only_task()
    number = task.pk.removeprefix("task_")
    assert response.status_code == 200
    assert response.headers["X-Task-Id"] == task.pk
    assert response.headers["request-id"] == f"req_{number}"
    assert response.json() == {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": "echo",
        "content": [{"type": "text", "text": "an answer"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 2,
        },
    }


def test_stream_has_the_events_of_anthropic() -> None:
    body = BODY | {"stream": True, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    response = ask(MESSAGES, body, thinking_and_calling)
    task = only_task()
    number = task.pk.removeprefix("task_")
    assert response.headers["request-id"] == f"req_{number}"
    start, ping, *blocks, delta, stop = events(response.text)
    assert start["message"]["id"] == f"msg_{number}"
    assert (start["message"]["content"], start["message"]["stop_reason"]) == ([], None)
    assert (ping, stop) == ({"type": "ping"}, {"type": "message_stop"})
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == 2

    def block(index: int, start: Any, *deltas: Any) -> list[Any]:
        where = {"index": index}
        return [
            {"type": "content_block_start", **where, "content_block": start},
            *({"type": "content_block_delta", **where, "delta": each} for each in deltas),
            {"type": "content_block_stop", **where},
        ]

    assert blocks == [
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "Hm."},
        ),
        *block(
            1,
            {"type": "text", "text": ""},
            {"type": "text_delta", "text": "So it is"},
        ),
        *block(
            2,
            TOOL_USE | {"input": {}},
            {"type": "input_json_delta", "partial_json": '{"a"'},
            {"type": "input_json_delta", "partial_json": ":1}"},
        ),
    ]


@pytest.mark.parametrize("shown", [False, True])
def test_thinking_is_shown_to_who_asks_for_it(shown: bool) -> None:
    fields = {"thinking": {"type": "adaptive"}} if shown else {}
    found = ask(MESSAGES, BODY | fields, thinking_and_calling).json()
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert found["content"] == [
        *([thinking] if shown else []),
        {"type": "text", "text": "So it is"},
        TOOL_USE,
    ]
    assert found["stop_reason"] == "tool_use"
    streamed = ask(MESSAGES, BODY | fields | {"stream": True}, thinking_and_calling)
    assert ("thinking_delta" in streamed.text) == shown


@pytest.mark.parametrize("arguments", ['{"a"', "[1]", ""])
def test_input_is_an_object_whatever_the_model_wrote(arguments: str) -> None:
    calls = [CALL | {"function": {"name": "weather", "arguments": arguments}}]
    found = ask(MESSAGES, BODY, ending_with("", "length", tool_calls=calls)).json()
    assert found["stop_reason"] == "max_tokens"
    expected = {"INVALID_JSON": arguments} if arguments else {}
    assert found["content"] == [TOOL_USE | {"input": expected}]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequence_is_named(stream: bool) -> None:
    end = ending_with("an answer", extra={"stop_sequence": "END"})
    response = ask(MESSAGES, BODY | {"stop_sequences": ["END"], "stream": stream}, end)
    found = events(response.text)[-2]["delta"] if stream else response.json()
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "END")
    assert only_task().request["params"]["stop_sequences"] == ["END"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_filter_refuses_is_a_refusal(stream: bool) -> None:
    end = failing(ErrorCode.CONTENT_FILTERED, text="so far")
    response = ask(MESSAGES, BODY | {"stream": stream}, end)
    assert response.status_code == 200
    found = events(response.text) if stream else [response.json()]
    assert "so far" in response.text
    assert (found[-2]["delta"] if stream else found[0])["stop_reason"] == "refusal"
    assert found[-1]["type"] == ("message_stop" if stream else "message")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (ErrorCode.CONTEXT_LENGTH_EXCEEDED, 400, "invalid_request_error"),
        (ErrorCode.RATE_LIMITED, 429, "rate_limit_error"),
        (ErrorCode.WORKER_LOST, 500, "api_error"),
        (ErrorCode.PROVIDER_UNAVAILABLE, 503, "overloaded_error"),
        (ErrorCode.TIMEOUT, 504, "timeout_error"),
    ],
)
def test_failure_before_any_text_has_its_status(
    stream: bool, code: ErrorCode, status: int, kind: str
) -> None:
    response = ask(MESSAGES, BODY | {"stream": stream}, failing(code))
    assert response.status_code == status
    assert response.headers["X-Task-Id"] == only_task().pk
    assert response.headers["X-Should-Retry"] == "false"
    body = response.json()
    assert (body["type"], body["error"]) == ("error", {"type": kind, "message": "It went wrong."})
    assert response.headers["request-id"] == body["request_id"]


def test_failure_after_some_text_is_an_event() -> None:
    response = ask(MESSAGES, BODY | {"stream": True}, failing(ErrorCode.TIMEOUT, text="so far"))
    assert response.status_code == 200
    *_, text, error = events(response.text)
    assert text["delta"]["text"] == "so far"
    assert (error["type"], error["error"]["type"]) == ("error", "timeout_error")


def test_fields_reach_the_task() -> None:
    body = BODY | {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "temperature": 1,
        "top_k": 7,
        "metadata": {"user_id": "someone"},
        "service_tier": "auto",
        "seed": 4,
        "stop_sequences": None,
    }
    path = f"{MESSAGES}?beta=true"
    headers = {"X-Priority": "70", "anthropic-version": "2023-06-01"}
    assert ask(path, body, completing(), **headers).status_code == 200
    task = only_task()
    assert (task.priority, task.metadata) == (70, {"user_id": "someone"})
    params = {"max_tokens": 9, "temperature": 1, "top_k": 7, "seed": 4}
    assert params.items() <= task.request["params"].items()
    assert task.request["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_turns_become_those_of_a_task() -> None:
    body = with_turns(
        user("How is"),
        user([{"type": "text", "text": "the weather?"}]),
        assistant(
            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look."},
            TOOL_USE,
        ),
        user(
            [
                TOOL_RESULT | {"content": [{"type": "text", "text": "Lost."}], "is_error": True},
                {"type": "text", "text": "And now?"},
            ]
        ),
        assistant({"type": "thinking", "thinking": "Only this."}),
        user("Well?"),
    )
    assert ask(MESSAGES, body, completing()).status_code == 200
    call = CALL | {"function": {"name": "weather", "arguments": '{"a": 1}'}}
    assert only_task().request["messages"] == [
        {"role": "user", "content": "How is\n\nthe weather?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "content": "Error: Lost.", "tool_call_id": "call_1"},
        {"role": "user", "content": "And now?"},
        {"role": "user", "content": "Well?"},
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"choice": "auto", "name": None, "parallel": True}),
        ({"type": "any"}, {"choice": "required", "name": None, "parallel": True}),
        (
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            {"choice": "required", "name": "weather", "parallel": False},
        ),
        ({"type": "none"}, {"choice": "none", "name": None, "parallel": True}),
    ],
)
def test_tools_become_those_of_a_task(choice: Any, expected: dict[str, Any]) -> None:
    body = BODY | {"model": "cloud", "tools": [TOOL], "tool_choice": choice}
    assert ask(MESSAGES, body, completing()).status_code == 200
    asked = only_task().request["tools"]
    assert json.loads(asked.pop("tools")) == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Of a city.",
                "parameters": TOOL["input_schema"],
            },
        }
    ]
    assert asked == expected


PNG = {"type": "base64", "media_type": "image/png", "data": "aGk="}
ADDRESS = "https://93.184.215.14/a.png"


@pytest.mark.parametrize(
    ("source", "url"),
    [(PNG, "data:image/png;base64,aGk="), ({"type": "url", "url": ADDRESS}, ADDRESS)],
)
def test_image_becomes_a_part(source: Any, url: str) -> None:
    blocks = [{"type": "text", "text": "What is it?"}, {"type": "image", "source": source}]
    body = with_turns(user(blocks)) | {"model": "cloud"}
    assert ask(MESSAGES, body, completing()).status_code == 200
    [message] = only_task().request["messages"]
    assert message["content"] == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]


def test_schema_of_the_answer_reaches_the_task() -> None:
    asked = {"format": {"type": "json_schema", "schema": TOOL["input_schema"]}}
    body = BODY | {"model": "cloud", "output_config": asked}
    assert ask(MESSAGES, body, completing('{"city": "Bonn"}')).status_code == 200
    assert only_task().request["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"model": "gone"}, 404, "model"),
        ({"max_tokens": None}, 400, "max_tokens"),
        ({"temprature": 1}, 400, "temprature"),
        ({"temperature": 1.5}, 400, "temperature"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [user("")]}, 400, "messages.0.content"),
        ({"messages": [user("Hi"), assistant(TOOL_USE)]}, 400, "messages"),
        ({"messages": [user([TOOL_RESULT])]}, 400, "messages.0.content.0.tool_use_id"),
        ({"messages": [user([TOOL_USE])]}, 400, "messages.0.content.0.type"),
        ({"messages": [user([{"type": "document"}])]}, 400, "messages.0.content.0.type"),
        ({"messages": [user([{"type": "text"}])]}, 400, "messages.0.content.0.text"),
        ({"messages": [user([7])]}, 400, "messages.0.content.0.type"),
        ({"system": [{"type": "image"}]}, 400, "system.0.type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 400, "web_search"),
        ({"tools": [TOOL | {"input_schema": {"type": "wrong"}}]}, 400, "#/0/input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, 400, "tool_choice.name"),
        ({"tools": [TOOL]}, 400, "tools"),  # the echo provider calls none
        ({"output_config": {"format": {"type": "json_schema"}}}, 400, "output_config.format"),
        ({"output_config": {"effort": "low"}}, 400, "output_config.effort"),
    ],
)
def test_refusal_names_the_parameter(
    api: APIClient, fields: dict[str, Any], status: int, said: str
) -> None:
    response = api.post(MESSAGES, BODY | fields, format="json")
    assert response.status_code == status
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    expected = "not_found_error" if status == 404 else "invalid_request_error"
    assert body["error"]["type"] == expected
    assert said in body["error"]["message"]
    assert response.headers["request-id"] == body["request_id"]
    assert not GenerationTask.objects.exists()


def test_errors_before_the_view_have_the_shape(api: APIClient) -> None:
    wrong_method = api.get(MESSAGES)
    no_json = api.post(MESSAGES, "{", content_type="application/json")
    nobody = ask(MESSAGES, BODY, **{"X-API-Key": "sopllm_00000000_" + "x" * 43})
    for response, status, kind in (
        (wrong_method, 405, "invalid_request_error"),
        (no_json, 400, "invalid_request_error"),
        (nobody, 401, "authentication_error"),
    ):
        assert response.status_code == status
        assert response.json()["error"]["type"] == kind
        assert response.headers["request-id"].startswith("req_")
