"""What providers send that they should not: how the task ends, and what of the answer is kept."""

import copy
import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversations.models import Conversation
from inference.api.submission import build_task
from inference.api.task_serializers import submission_validator
from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import submit
from inference.models import GenerationTask, RegisteredModel, TaskAttempt
from inference.providers.base import Progress
from inference.providers.cloud import answer as cloud_answer
from inference.providers.cloud import errors
from inference.providers.registry import provider_for
from monitoring.api.principal import LOCAL
from monitoring.redis.client import client
from tests.cloud_server import KEY, CloudServer, Reply, delta
from tests.conftest import client_of
from tests.inference.execution.cloud_sessions import deltas, execute
from tests.inference.lifecycle.test_lifecycle import claimed, fresh
from tests.inference.providers.conftest import Register
from tests.inference.providers.test_cloud_provider import (
    KINDS,
    Heard,
    answer,
    failure,
    hear,
    request,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]

NewTask = Callable[..., GenerationTask]
Kind = RegisteredModel.Provider
OF_OPENAIS_SHAPE = [Kind.OPENAI, Kind.OPENAI_COMPATIBLE, Kind.LITELLM]
STOP = delta(finish_reason="stop")
USAGE: dict[str, Any] = {
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


def told(register: Register, server: CloudServer, *events: Any, **config: Any) -> Heard:
    """What is given out of an answer of these events."""
    server.faults.append(Reply.of_events(*events))
    return hear(register(**config))


@pytest.mark.parametrize("kind", OF_OPENAIS_SHAPE)
@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (["\ud83d", "\ude00"], "😀"),
        (["a\ud83d", "", "\ude00b\ud83d", "\ude00"], "a😀b😀"),
        (["\ud83d"], "\N{REPLACEMENT CHARACTER}"),
        (["\ude00", "a"], "\N{REPLACEMENT CHARACTER}a"),
        (["\ud83d", "b"], "\N{REPLACEMENT CHARACTER}b"),
        (["a\0b"], "a\N{REPLACEMENT CHARACTER}b"),
        (["one\u2028two\u0085three"], "one\u2028two\u0085three"),
        ([[{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]], "one two"),
        ([["one ", {"type": "image_url", "image_url": {}}, {"text": "two"}]], "one two"),
        ([7, 0, {"text": "!"}, True, None], "70!true"),
    ],
)
def test_text_is_whole(
    register: Register, server: CloudServer, kind: str, contents: list[Any], text: str
) -> None:
    server.faults.append(Reply.of_events(*map(delta, contents), STOP))
    found = list(deltas(provider_for(register(kind)).generate(request(), Progress())))
    assert "".join(map(str, found)) == text
    for each in found:
        str(each).encode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("num_bytes", [1, 7, 10_000])
def test_stream_is_read_as_its_protocol_has_it(
    register: Register, server: CloudServer, kind: str, line_end: str, num_bytes: int
) -> None:
    text = "one\u2028two\x85three\x0b"
    events: list[Any] = [delta(text), STOP]
    if kind == Kind.ANTHROPIC:
        events = copy.deepcopy(ANTHROPICS_EVENTS)
        events[2]["delta"]["text"] = text
    stream = "\ufeff"
    for number, event in enumerate(events):
        data = json.dumps(event, ensure_ascii=False, indent=1).split("\n")
        lines = [": comment", f"id: {number}", "event: x", *(f"data: {line}" for line in data)]
        stream += line_end.join([*lines, "", ""])
    body = stream.encode()
    parts = [body[start : start + num_bytes] for start in range(0, len(body), num_bytes)]
    server.faults.append(Reply(parts))
    assert answer(register(kind))[0] == text


@pytest.mark.parametrize("kind", OF_OPENAIS_SHAPE)
def test_blocks_of_thinking_are_reasoning(
    register: Register, server: CloudServer, kind: str
) -> None:
    thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]
    heard = told(register, server, delta(thinking), delta("yes"), STOP, kind=kind)
    assert (heard.reasoning, heard.text) == ("Hm", "yes")


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("kind", "content", "reasoning", "text"),
    [
        (Kind.OPENAI_COMPATIBLE, "<think>\nHm.\n</think>\n\nyes ", "Hm.", "yes "),
        (Kind.OPENAI_COMPATIBLE, "<think>Hm", "Hm", ""),
        (Kind.OPENAI_COMPATIBLE, " <thin ice", "", " <thin ice"),
        (Kind.OPENAI_COMPATIBLE, "a <think>", "", "a <think>"),
        (Kind.OPENAI, "<think>Hm</think>yes", "", "<think>Hm</think>yes"),
    ],
)
def test_reasoning_in_the_text_is_told_apart(
    register: Register,
    server: CloudServer,
    kind: Kind,
    content: str,
    reasoning: str,
    text: str,
    size: int,
) -> None:
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    heard = told(register, server, *map(delta, parts), STOP, kind=kind)
    assert (heard.reasoning, heard.text) == (reasoning, text)


def test_text_is_as_it_is_where_reasoning_has_a_field(
    register: Register, server: CloudServer
) -> None:
    events = [delta(" "), delta(reasoning_content="Hm"), delta("<think>a</think>b"), STOP]
    heard = told(register, server, *events, kind=Kind.OPENAI_COMPATIBLE)
    assert (heard.reasoning, heard.text) == ("Hm", " <think>a</think>b")


def test_tokens_of_reasoning_are_as_the_provider_says(
    register: Register, server: CloudServer
) -> None:
    usage = USAGE["usage"] | {"completion_tokens_details": {"reasoning_tokens": 1}}
    heard = told(register, server, delta("yes"), STOP, USAGE | {"usage": usage})
    assert heard.progress.usage()["reasoning_tokens"] == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "stray", [7, None, [], ["x"], "x", True, {}, {"choices": 7}, {"choices": [7]}]
)
def test_stray_event_is_passed_over(
    register: Register, server: CloudServer, kind: str, stray: Any
) -> None:
    if kind == Kind.ANTHROPIC:
        events = [stray, {"type": "content_block_start"}, *ANTHROPICS_EVENTS]
    else:
        events = [stray, delta("yes"), stray, STOP, stray]
    assert told(register, server, *events, kind=kind).text == "yes"


ANTHROPICS_EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "yes"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
]


@pytest.mark.parametrize(
    "usage",
    [
        *({"prompt_tokens": -1}, {"prompt_tokens": 1e400}, {"prompt_tokens": "3"}),
        *({"prompt_tokens": None}, {"prompt_tokens": 10**30}, {"completion_tokens": -1}),
        *({"completion_tokens": float("nan")}, {"completion_tokens": []}),
        {"completion_tokens": True},
        *({}, [], 7, "x"),
    ],
)
def test_usage_that_cannot_be_is_estimated(
    register: Register, server: CloudServer, usage: Any
) -> None:
    if isinstance(usage, dict) and usage:
        usage = USAGE["usage"] | usage
    progress = told(register, server, delta("yes"), STOP, {"choices": [], "usage": usage}).progress
    assert progress.extra["usage_is_estimated"] is True
    assert 0 < progress.usage()["total_tokens"] < 100


def test_details_of_usage_are_optional(register: Register, server: CloudServer) -> None:
    for details in (None, 7, {}, {"cached_tokens": -1}, {"cached_tokens": "x"}):
        usage = USAGE["usage"] | {"prompt_tokens_details": details}
        server.faults.append(Reply.of_events(delta("yes"), STOP, {"choices": [], "usage": usage}))
        RegisteredModel.objects.filter(name="cloud").delete()
        assert answer(register())[1].usage()["cached_tokens"] == 0


def test_logprobs_are_finite(register: Register, server: CloudServer) -> None:
    token = {"token": "\ud83d", "logprob": float("-inf"), "bytes": [1], "top_logprobs": []}
    event = delta("yes")
    event["choices"][0]["logprobs"] = {"content": [token, 7, token | {"logprob": float("nan")}]}
    logprobs = told(register, server, event, STOP).progress.logprobs
    assert [each["logprob"] for each in logprobs] == [-9999.0, None]
    assert logprobs[0]["token"] == "\N{REPLACEMENT CHARACTER}"


def call(name: Any = "", arguments: Any = "", **fields: Any) -> dict[str, Any]:
    return fields | {"function": {"name": name, "arguments": arguments}}


A = {"name": "a", "arguments": '{"x": 1}'}
B = {"name": "b", "arguments": '{"y": 2}'}


@pytest.mark.parametrize(
    ("calls", "functions"),
    [
        ([[call(**A, id="1", index=0), call(**B, id="2", index=0)]], [A, B]),
        ([[call(**A, id="1"), call(**B, id="2")]], [A, B]),
        ([[call(**A, index=0)], [call(**B, index=0)]], [A, B]),
        ([[call(**A)], [call(**B)]], [A, B]),
        ([[call(**A)], [call(**A)]], [A, A]),
        ([[call(**B, id="2", index=1)], [call(**A, id="1", index=0)]], [B, A]),
        (
            [
                [call("a", '{"x"', id="1", index=0)],
                [call("b", '{"y"', id="2", index=0)],
                [call("", ": 1}", id="1", index=0), call("", ": 2}", id="2", index=0)],
            ],
            [A, B],
        ),
        (
            [
                [call("a", '{"x"', id="1", index=0), call("b", '{"y"', id="2", index=1)],
                [call("", ": 2}", index=1), call("", ": 1}", index=0)],
            ],
            [A, B],
        ),
        ([[call("a", '{"x"', id="1")], [call("", ": 1}")]], [A]),
        ([[call("a", '{"x"', id="1", index=0)], [call("", ": 1}", id="9", index=0)]], [A]),
        ([[call("a", '{"x"', index=0)], [call("a", ": 1}", index=0)]], [A]),
        ([[call("a", {"x": 1}, index=0)]], [A]),
        ([[call("a", None, index="0")]], [{"name": "a", "arguments": ""}]),
        ([[call("a", "\ud83d"), 7, None, call("", "\ude00")]], [{"name": "a", "arguments": "😀"}]),
        ([[call("a\0", '"\ud83d"')]], [{"name": "a\ufffd", "arguments": '"\ufffd"'}]),
        ([call(**A, id=7)], [A]),
        ([[call(7, '{"x": 1}', id="1", index=0), call("a", id="1")]], [A | {"name": ""}]),
    ],
)
def test_tool_calls_are_told_apart(
    register: Register, server: CloudServer, calls: list[Any], functions: list[Any]
) -> None:
    events = [delta(tool_calls=each) for each in calls]
    found = told(register, server, *events, delta(finish_reason="tool_calls")).tool_calls
    assert [each["function"] for each in found] == functions
    assert all(isinstance(each["id"], str) and each["id"] for each in found)
    assert len({each["id"] for each in found}) == len(found)


def test_old_function_call_is_a_tool_call(register: Register, server: CloudServer) -> None:
    events = [delta(function_call={"name": "a", "arguments": '{"x"'})]
    events += [delta(function_call={"arguments": ": 1}"}), delta(finish_reason="function_call")]
    [found] = told(register, server, *events).tool_calls
    assert found["function"] == A


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        *((each, FinishReason.STOP) for each in ("stop", "end_turn", "STOP", "tool_calls")),
        *((each, FinishReason.LENGTH) for each in ("length", "max_tokens", "model_length")),
    ],
)
def test_reasons_to_end_are_known(
    register: Register, server: CloudServer, reason: str, kept: FinishReason
) -> None:
    progress = told(register, server, delta("yes", finish_reason=reason)).progress
    assert (progress.finish_reason, "provider_finish_reason" in progress.extra) == (kept, False)


@pytest.mark.parametrize("reason", ["bored", "\ud83d", 7, {"a": 1}, "x" * 10_000])
def test_unknown_reason_is_kept(register: Register, server: CloudServer, reason: Any) -> None:
    progress = told(register, server, delta("yes", finish_reason=reason)).progress
    assert progress.finish_reason == FinishReason.STOP
    assert 0 < len(progress.extra["provider_finish_reason"].encode()) <= 100


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        *((each, ErrorCode.CONTENT_FILTERED) for each in ("content_filter", "sensitive", "SAFETY")),
        ("insufficient_system_resource", ErrorCode.PROVIDER_UNAVAILABLE),
        *((each, ErrorCode.PROVIDER_UNAVAILABLE) for each in ("network_error", "error", "abort")),
    ],
)
def test_reason_may_be_a_failure(
    register: Register, server: CloudServer, reason: str, code: ErrorCode
) -> None:
    server.faults.append(Reply.of_events(delta("half"), delta(finish_reason=reason)))
    error = failure(register(max_retries=0))
    assert (error.code, error.retryable) == (code, code != ErrorCode.CONTENT_FILTERED)


@pytest.mark.parametrize("reason", ["refusal", "model_context_window_exceeded", "bored"])
def test_anthropics_reasons_are_its_own(
    register: Register, server: CloudServer, reason: str
) -> None:
    stop = ANTHROPICS_EVENTS[-1] | {"delta": {"stop_reason": reason}}
    server.faults.append(Reply.of_events(*ANTHROPICS_EVENTS[:-1], stop))
    if reason == "refusal":
        assert failure(register(Kind.ANTHROPIC)).code == ErrorCode.CONTENT_FILTERED
        return
    _, progress = answer(register(Kind.ANTHROPIC))
    is_cut = progress.finish_reason == FinishReason.LENGTH
    assert is_cut == ("provider_finish_reason" not in progress.extra)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["cut", "hang", "ping", "close"])
def test_answer_that_has_ended_is_kept(
    register: Register, server: CloudServer, kind: str, end: str
) -> None:
    events = ANTHROPICS_EVENTS if kind == Kind.ANTHROPIC else [delta("yes"), STOP]
    server.faults.append(Reply.of_events(*events, end=end))
    text, progress = answer(register(kind, timeout=0.3, max_retries=0))
    assert (text, progress.finish_reason) == ("yes", FinishReason.STOP)
    assert len(server.calls) == 1


def test_usage_may_come_after_the_end(register: Register, server: CloudServer) -> None:
    assert told(register, server, delta("yes"), STOP, USAGE).progress.prompt_tokens == 5


WHOLE = {
    "object": "chat.completion",
    "choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": USAGE["usage"],
}


@pytest.mark.parametrize("kind", OF_OPENAIS_SHAPE)
@pytest.mark.parametrize("indent", [None, 2])
def test_whole_completion_is_an_answer(
    register: Register, server: CloudServer, kind: str, indent: int | None
) -> None:
    body = json.dumps(WHOLE, indent=indent).encode()
    server.faults.append(Reply([body], content_type="application/json"))
    text, progress = answer(register(kind))
    assert (text, progress.usage()["total_tokens"]) == ("yes", 7)


def test_whole_completion_needs_no_reason(register: Register, server: CloudServer) -> None:
    server.faults.append(Reply.of_json({"choices": [{"message": {"content": "yes"}}]}))
    text, progress = answer(register())
    assert (text, progress.finish_reason) == ("yes", FinishReason.STOP)


def test_whole_message_of_anthropic_is_an_answer(register: Register, server: CloudServer) -> None:
    tool = {"type": "tool_use", "id": "t", "name": "a", "input": {"x": 1}}
    content = [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "yes"}, tool]
    usage = {"input_tokens": 3, "output_tokens": 2}
    message = {"type": "message", "role": "assistant", "content": content, "usage": usage}
    server.faults.append(Reply.of_json(message | {"stop_reason": "tool_use", "model": "x"}))
    heard = hear(register(Kind.ANTHROPIC))
    assert (heard.text, heard.reasoning) == ("yes", "Hm")
    assert heard.tool_calls[0]["function"] == A
    assert heard.progress.usage()["total_tokens"] == 5


CODES = {
    400: (ErrorCode.INVALID_REQUEST, False),
    401: (ErrorCode.AUTHENTICATION_FAILED, False),
    404: (ErrorCode.PROVIDER_ERROR, False),
    429: (ErrorCode.RATE_LIMITED, True),
    500: (ErrorCode.PROVIDER_UNAVAILABLE, True),
    503: (ErrorCode.PROVIDER_UNAVAILABLE, True),
    "429": (ErrorCode.RATE_LIMITED, True),
    "invalid_api_key": (ErrorCode.AUTHENTICATION_FAILED, False),
    "rate_limit_exceeded": (ErrorCode.RATE_LIMITED, True),
    "insufficient_quota": (ErrorCode.RATE_LIMITED, False),
    "overloaded_error": (ErrorCode.PROVIDER_UNAVAILABLE, True),
    "context_length_exceeded": (ErrorCode.CONTEXT_LENGTH_EXCEEDED, False),
    7: (ErrorCode.PROVIDER_UNAVAILABLE, True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_error_in_a_200_has_its_own_status(
    register: Register, server: CloudServer, kind: str, code: int | str, is_streamed: bool
) -> None:
    event = {"error": {"message": "No.", "code": code}}
    server.faults.append(Reply.of_events(event) if is_streamed else Reply.of_json(event))
    error = failure(register(kind, max_retries=0))
    assert (error.code, error.retryable) == CODES[code]


@pytest.mark.parametrize(
    "event",
    [
        {"error": "The model is overloaded."},
        {"error": {"type": "overloaded_error"}},
        {"error": ["x"]},
        {"object": "error", "message": "No.", "code": 503},
        {"type": "error", "status": 503},
        {"choices": [{"error": {"code": 502, "message": "No."}, "finish_reason": "error"}]},
        {"error": {"message": "\ud83d", "code": float("inf")}},
    ],
)
def test_error_of_any_shape_is_one(register: Register, server: CloudServer, event: Any) -> None:
    server.faults.append(Reply.of_events(event))
    error = failure(register(max_retries=0))
    assert error.code == ErrorCode.PROVIDER_UNAVAILABLE
    error.message.encode()


def test_event_called_error_is_one(register: Register, server: CloudServer) -> None:
    server.faults.append(Reply([b'event: error\ndata: {"code": 429, "message": "No."}\n\n']))
    assert failure(register(max_retries=0)).code == ErrorCode.RATE_LIMITED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [200, 201, 204, 302, 400, 401, 418, 429, 500, 503, 599])
def test_body_of_any_kind_is_a_failure(
    register: Register, server: CloudServer, kind: str, status: int
) -> None:
    model = register(kind, max_retries=0)
    bodies = [
        b"",
        b"null",
        b"[7]",
        b'{"error": null}',
        b'{"error": "\\ud83d"}',
        b"\xff\xfe\0",
        b"{",
    ]
    for body in [*bodies, b"<" * 40_000, b'{"error": {"message": [1], "code": {}}}']:
        server.faults.append(Reply([body], status, "application/json", {"Retry-After": "soon"}))
        error = failure(model)
        assert error.code != ErrorCode.INTERNAL_ERROR
        assert error.retry_after is None or error.retry_after < 60
        error.message.encode()
        client().flushdb()  # and with it the model's circuit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize(
    "words",
    [
        "-----BEGIN PRIVATE KEY-----",
        "http://a:",
        '{"type": ',
        "<",
        "litellm.Timeout: ",
        'b"\\',
        "\\",
    ],
)
def test_no_error_takes_long_to_read(
    register: Register, server: CloudServer, kind: str, status: int, words: str
) -> None:
    model = register(kind, max_retries=0)
    text = words * (200_000 // len(words))
    server.faults.append(Reply.of_json({"error": {"message": text}}, status))
    assert failure(model).code != ErrorCode.INTERNAL_ERROR


@pytest.mark.parametrize("kind", KINDS)
def test_error_is_cut_where_it_comes_in(
    register: Register, server: CloudServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lengths = []
    failure_of = errors.failure_of

    def measured(error: Exception, *of: Any) -> InferenceError:
        lengths.append(len(str(error)))
        return failure_of(error, *of)

    monkeypatch.setattr(errors, "failure_of", measured)
    text = "No. " * 1_000_000
    server.faults.append(Reply.of_json({"error": {"message": text}}, 400))
    error = failure(register(kind, max_retries=0))
    assert error.code == ErrorCode.INVALID_REQUEST
    assert "It says: No. No." in error.message
    assert lengths[0] < 100_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [500, 503])
def test_status_goes_before_words(
    register: Register, server: CloudServer, kind: str, status: int
) -> None:
    words = "The content filter is down: content_policy_violation, insufficient_quota"
    server.faults.append(Reply.of_json({"error": {"message": words}}, status))
    assert answer(register(kind, max_retries=1))[0] == "one two three four five six"


def test_faults_of_requests_do_not_open_the_circuit(
    register: Register, server: CloudServer
) -> None:
    model = register(max_retries=0)
    for code in [400, 401, 404, 429] * 3:
        server.faults.append(Reply.of_events({"error": {"code": code}}))
        failure(model)
    assert answer(model)[0] == "one two three four five six"


@pytest.mark.parametrize("end", ["ping", "hang"])
def test_comments_are_no_sign_of_life(register: Register, server: CloudServer, end: str) -> None:
    server.faults.append(Reply.of_events(delta(""), end=end))
    error = failure(register(timeout=0.3, max_retries=0))
    assert error.code == ErrorCode.PROVIDER_TIMEOUT


def test_answer_has_a_bound(
    register: Register, server: CloudServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_answer, "MAX_CHARS", 100)
    server.faults.append(Reply.of_events(*[delta("word ")] * 50, STOP))
    error = failure(register())
    assert (error.code, error.retryable) == (ErrorCode.PROVIDER_ERROR, False)


@pytest.mark.parametrize("part", [KEY, KEY[:12], KEY[2:10], KEY.upper()])
def test_no_part_of_a_key_is_shown(register: Register, server: CloudServer, part: str) -> None:
    for text in (f"bad {part}.", f"https://x/?a={quote(part)}&b", f"x{part}x"):
        RegisteredModel.objects.filter(name="cloud").delete()
        server.faults.append(Reply.of_json({"error": {"message": text}}, 400))
        assert part.lower() not in failure(register()).message.lower()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_elsewhere_gets_nothing(
    register: Register, server: CloudServer, kind: str, status: int
) -> None:
    with CloudServer(key=None) as elsewhere:
        path = "/v1/messages" if kind == Kind.ANTHROPIC else "/v1/chat/completions"
        headers = {"Location": elsewhere.url + path}
        server.faults.append(Reply([b""], status, headers=headers))
        error = failure(register(kind, max_retries=0))
        assert (error.code, error.retryable) == (ErrorCode.PROVIDER_ERROR, False)
        assert "another host" in error.message
        assert elsewhere.calls == []


@pytest.mark.parametrize("kind", OF_OPENAIS_SHAPE)
def test_redirect_within_the_host_is_followed(
    register: Register, server: CloudServer, kind: str
) -> None:
    headers = {"Location": f"{server.openai_url}/chat/completions"}
    server.faults.append(Reply([b""], 307, headers=headers))
    assert answer(register(kind))[0] == "one two three four five six"


def run(task: GenerationTask) -> GenerationTask:
    """Executed, and so that it can be read."""
    execute(claimed(task))
    task = fresh(task)
    assert client_of(LOCAL).get(f"/api/v1/tasks/{task.pk}").status_code == 200
    return task


def test_emoji_in_two_events_is_stored(
    register: Register, server: CloudServer, new_task: NewTask
) -> None:
    register()
    server.faults.append(Reply.of_events(delta("\ud83d"), delta("\ude00"), STOP))
    task = run(new_task(model="cloud"))
    assert task.result is not None
    assert (task.status, task.result["text"]) == ("completed", "😀")


@pytest.mark.parametrize(
    "extra", [{"a": "\ud83d"}, {"a": float("nan")}, {"a": object()}, {"a": float("-inf")}]
)
def test_end_that_cannot_be_stored_is_a_failure(
    register: Register,
    server: CloudServer,
    new_task: NewTask,
    monkeypatch: pytest.MonkeyPatch,
    extra: dict[str, Any],
) -> None:
    register()
    monkeypatch.setattr(Progress, "usage", lambda _: extra)
    task = run(new_task(model="cloud"))
    assert (task.status, task.error_code) == ("failed", "internal_error")
    assert TaskAttempt.objects.filter(task=task).count() == 1


def test_failure_that_cannot_be_stored_is_another_one(
    register: Register, new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()

    def fail(*_: object) -> None:
        raise InferenceError("half \ud83d", ErrorCode.PROVIDER_ERROR)

    monkeypatch.setattr("inference.execution.cloud_session.provider_for", fail)
    task = run(new_task(model="cloud"))
    assert (task.status, task.error_code) == ("failed", "internal_error")


def test_reasoning_alone_is_told_and_not_saved(
    register: Register, server: CloudServer, new_task: NewTask
) -> None:
    register()
    conversation = Conversation.objects.create(owner="local")
    events = [delta(reasoning_content="Hm"), delta("", finish_reason="length")]
    server.faults.append(Reply.of_events(*events))
    task = run(new_task(model="cloud", conversation_id=conversation.pk))
    assert task.result is not None
    assert (task.status, task.result["reasoning_content"]) == ("completed", "Hm")
    assert "max_tokens" in task.result["extra"]["warning"]
    assert conversation.messages.count() == 0


def test_tool_call_is_saved_without_a_text(
    register: Register, server: CloudServer, new_task: NewTask
) -> None:
    register()
    conversation = Conversation.objects.create(owner="local")
    events = [delta(tool_calls=[call(**A)]), delta(finish_reason="tool_calls")]
    server.faults.append(Reply.of_events(*events))
    task = run(new_task(model="cloud", conversation_id=conversation.pk))
    assert task.result is not None
    [made] = task.result["tool_calls"]
    assert (made["function"], task.result["finish_reason"]) == (A, "tool_calls")
    assert task.result["extra"] == {"usage_is_estimated": True}
    saved = [(each.role, each.content, each.tool_calls) for each in conversation.messages.all()]
    assert saved == [("user", "one two three", None), ("assistant", "", [made])]


@pytest.mark.parametrize(
    ("roles", "saved"),
    [
        (["user", "assistant"], "0"),
        (["user", "assistant", "user", "assistant"], "2"),
        (["user", "system"], "0"),
        (["assistant"], None),
        (["assistant", "user"], "1"),
    ],
)
def test_only_a_users_message_is_saved_as_one(
    register: Register, server: CloudServer, roles: list[str], saved: str | None
) -> None:
    register()
    conversation = Conversation.objects.create(owner="local")
    messages = [{"role": role, "content": str(n)} for n, role in enumerate(roles)]
    server.faults.append(Reply.of_events(delta("yes"), STOP))
    body = {"model": "cloud", "messages": messages, "conversation_id": conversation.pk}
    task = build_task("local", submission_validator().run_validation(body), None)
    assert run(submit.submit([task])[0]).status == "completed"
    turn = [] if saved is None else [("user", saved), ("assistant", "yes")]
    assert list(conversation.messages.values_list("role", "content").order_by("id")) == turn


_NAMES = [
    *("choices", "delta", "message", "content", "finish_reason", "usage", "error", "code", "type"),
    *("tool_calls", "function", "name", "arguments", "id", "index", "logprobs", "text", "refusal"),
    *("prompt_tokens", "completion_tokens", "reasoning_content", "content_block", "stop_reason"),
    *("status", "object", "param", "cached_tokens", "prompt_tokens_details", "thinking"),
]
# JSON as Python reads it, also where the standard has no such number.
_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(), max_size=5),
        st.sampled_from(["\ud83d", "\ude00", "\0", "stop", "error", "message_delta", "message"]),
        st.sampled_from([10**400, -(10**19), 1e308, 429, 503, "429", "invalid_api_key"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)
_deltas = st.builds(
    delta,
    _values,
    _values | st.sampled_from(["stop", None, "length", "network_error"]),
    tool_calls=_values | st.lists(st.fixed_dictionaries({"function": _values, "id": _values})),
    reasoning_content=_values,
)
_errors = st.fixed_dictionaries(
    {"error": _values | st.fixed_dictionaries({"code": _values, "status": _values})}
)
_events = _values | _deltas | _errors | st.sampled_from([STOP, USAGE, WHOLE, *ANTHROPICS_EVENTS])
# What no value is written as: names twice, nesting without end, numbers of many digits.
_TEXTS = [
    '{"choices": [], "choices": [{"delta": {"content": "a", "content": "b"}}]}',
    '{"error": null, "error": {"code": 401}, "error": {}}',
    "[" * 100_000,
    '{"error":' * 20_000,
    '{"choices": [{"delta": {"content": ' + "[" * 900 + "]" * 900 + "}}]}",
    '{"usage": {"prompt_tokens": ' + "9" * 5000 + "}}",
    '{"choices": [{"delta": {"content": 1e999}}]}',
    *("{", "[DONE", "\ufeff{}", "a: b", ""),
]
_texts = st.builds(json.dumps, _events, indent=st.sampled_from([None, None, 0, 2]))
_line_ends = st.sampled_from(["\n", "\n", "\r\n", "\r"])
_fields = st.sampled_from(
    ["", "", ": comment", "id: 7\0", "retry: x", "event: error", "event", "x"]
)


@st.composite
def _streams(draw: st.DrawFn) -> bytes:
    """Server-Sent Events, each in one `data:` line or several."""
    end, stream = draw(_line_ends), ""
    for text in draw(st.lists(_texts | st.sampled_from(_TEXTS), max_size=6)):
        data = [f"data: {line}" for line in text.split("\n")]
        stream += end.join([draw(_fields), *data, "", ""])
    return stream.encode("utf-8", "surrogatepass")


_bodies = st.one_of(
    _streams(),
    _streams(),
    _streams().map(gzip.compress),
    _texts.map(str.encode),
    st.sampled_from(_TEXTS).map(str.encode),
    st.binary(max_size=200),
)
_headers = st.fixed_dictionaries(
    {},
    optional={
        "Content-Encoding": st.sampled_from(["gzip", "gzip", "deflate", "br", "x"]),
        "Retry-After": st.sampled_from(["-1", "1e99", "9" * 30, "0.001", "soon", "\x80"]),
        "x-should-retry": st.sampled_from(["true", "x"]),
    },
)


@pytest.mark.timeout(480)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    body=_bodies,
    cuts=st.lists(st.integers(0, 400), max_size=3).map(sorted),
    end=st.sampled_from(["close", "close", "cut"]),
    status=st.sampled_from([*[200] * 6, 201, 204, 400, 401, 404, 429, 500, 503, 599]),
    content_type=st.sampled_from(
        ["text/event-stream", "text/event-stream", "application/json", "text/html; charset=x"]
    ),
    headers=_headers,
    kind=st.sampled_from(KINDS),
)
def test_attempt_always_ends(
    register: Register,
    server: CloudServer,
    new_task: NewTask,
    body: bytes,
    cuts: list[int],
    end: str,
    status: int,
    content_type: str,
    headers: dict[str, str],
    kind: str,
) -> None:
    RegisteredModel.objects.filter(name="cloud").delete()
    register(kind, max_retries=0, timeout=2)
    client().flushdb()  # and with it the model's circuit
    parts = [body[start:stop] for start, stop in pairwise([0, *cuts, len(body)])]
    server.faults.append(Reply(parts, status, content_type, headers, end))
    task = run(new_task(model="cloud"))
    assert task.status in ("completed", "failed")
    assert (task.error_code is None) == (task.status == "completed")
    assert task.error_code is None or ErrorCode(task.error_code)
    assert task.error_code != ErrorCode.INTERNAL_ERROR
    assert connection.in_atomic_block is False
