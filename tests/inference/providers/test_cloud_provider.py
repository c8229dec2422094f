"""Cloud providers: the real LiteLLM, asking a stand-in for the clouds over HTTP."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.conf import settings

from inference.engine.deltas import AnswerDelta, Reasoning
from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError, RetryLater
from inference.models import GenerationTask, RegisteredModel
from inference.providers.base import GenerationRequest, Progress, StartOver
from inference.providers.registry import provider_for
from inference.tools import normalize
from monitoring.redis.client import client
from monitoring.streams.delta_stream import stream_key
from tests.cloud_server import KEY, CloudServer, Fault
from tests.conftest import wait_until
from tests.inference.execution.cloud_sessions import deltas, execute, start, wait
from tests.inference.lifecycle.test_lifecycle import claimed, fresh, outcomes
from tests.inference.providers.conftest import NAMES, Register

# Committed rows, which the lease renewer's thread reads too.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]

NewTask = Callable[..., GenerationTask]

Kind = RegisteredModel.Provider
KINDS = tuple(NAMES)
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "find_person", "parameters": PERSON}}


def request(prompt: str = "one two three four five six", **fields: Any) -> GenerationRequest:
    params = {"max_tokens": 100, "stop_sequences": []} | fields.pop("params", {})
    messages = fields.pop("messages", [{"role": "user", "content": prompt}])
    return GenerationRequest("request", messages, params, **fields)


def generation(
    model: RegisteredModel, progress: Progress, **fields: Any
) -> Generator[AnswerDelta | StartOver, None, None]:
    return deltas(provider_for(model).generate(request(**fields), progress))


@dataclass
class Heard:
    """What a provider has given out, of the last call alone."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)

    def take(self, delta: AnswerDelta | StartOver) -> None:
        if isinstance(delta, StartOver):
            self.text, self.reasoning, self.tool_calls = "", "", []
        elif isinstance(delta, str):
            self.text += delta
        elif isinstance(delta, Reasoning):
            self.reasoning += delta.text
        else:
            if delta.id is not None:
                assert delta.index == len(self.tool_calls)
                function = {"name": delta.name, "arguments": ""}
                self.tool_calls.append({"id": delta.id, "function": function})
            self.tool_calls[delta.index]["function"]["arguments"] += delta.arguments


def hear(model: RegisteredModel, **fields: Any) -> Heard:
    heard = Heard()
    for delta in generation(model, heard.progress, **fields):
        heard.take(delta)
    return heard


def answer(model: RegisteredModel, **fields: Any) -> tuple[str, Progress]:
    """The text, of the last call alone, and the progress."""
    heard = hear(model, **fields)
    return heard.text, heard.progress


def failure(model: RegisteredModel, **fields: Any) -> InferenceError:
    with pytest.raises(InferenceError) as caught:
        answer(model, **fields)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_answer_comes_with_usage(register: Register, server: CloudServer, kind: str) -> None:
    text, progress = answer(register(kind))
    assert text == "one two three four five six"
    assert progress.finish_reason == FinishReason.STOP
    assert progress.usage() == {
        "prompt_tokens": 6,
        "completion_tokens": 6,
        "total_tokens": 12,
        "cached_tokens": 3,
    }
    assert progress.extra == {}
    [call] = server.calls
    assert call.body["stream"] is True
    assert call.body["model"] == NAMES[Kind(kind)].removeprefix("deepseek/")


@pytest.mark.parametrize("kind", KINDS)
def test_answer_at_its_limit_says_so(register: Register, kind: str) -> None:
    text, progress = answer(register(kind), params={"max_tokens": 2})
    assert (text, progress.finish_reason) == ("one two ", FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("kind", "params", "sent"),
    [
        (
            Kind.OPENAI,
            {"temperature": 0.5, "top_p": 0.9, "seed": 3, "presence_penalty": 0.1},
            {"temperature": 0.5, "top_p": 0.9, "seed": 3, "presence_penalty": 0.1},
        ),
        (
            Kind.ANTHROPIC,
            {"temperature": 0.5, "top_k": 7, "stop_sequences": ["END"]},
            {"temperature": 0.5, "top_k": 7, "stop_sequences": ["END"], "max_tokens": 100},
        ),
        (
            Kind.OPENAI_COMPATIBLE,
            {"top_k": 7, "min_p": 0.1, "repeat_penalty": 1.1, "stop_sequences": ["END"]},
            {"top_k": 7, "min_p": 0.1, "repeat_penalty": 1.1, "repetition_penalty": 1.1}
            | {"stop": ["END"], "max_tokens": 100},
        ),
        (
            Kind.LITELLM,
            {"top_p": 0.9, "top_k": 7, "repeat_penalty": 1.1},
            {"top_p": 0.9, "top_k": 7, "repetition_penalty": 1.1},
        ),
    ],
)
def test_sampling_parameters_arrive(
    register: Register, server: CloudServer, kind: str, params: dict[str, Any], sent: dict[str, Any]
) -> None:
    server.is_strict = False
    answer(register(kind), params=params)
    [call] = server.calls
    assert call.body.items() >= sent.items()


def test_parameter_that_the_model_does_not_take_is_refused(
    register: Register, server: CloudServer
) -> None:
    error = failure(register(model_name="gpt-5"), params={"temperature": 0.5})
    assert error.code == ErrorCode.INVALID_REQUEST
    assert "drop_params" in error.message
    assert server.calls == []


def test_model_with_drop_params_does_without(register: Register, server: CloudServer) -> None:
    answer(register(model_name="gpt-5", drop_params=True), params={"temperature": 0.5})
    assert "temperature" not in server.calls[0].body


def test_system_message_and_history_arrive(register: Register, server: CloudServer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    text, _ = answer(register(), messages=messages)
    assert text == "three"
    assert server.calls[0].body["messages"] == messages


@pytest.mark.parametrize("kind", KINDS)
def test_tool_calls_are_put_together(register: Register, kind: str) -> None:
    asked = normalize([TOOL], None, None)
    heard = hear(register(kind), tools=asked)
    assert (heard.text, heard.progress.finish_reason) == ("", FinishReason.STOP)
    [call] = heard.tool_calls
    assert call["function"]["name"] == "find_person"
    assert json.loads(call["function"]["arguments"]) == {
        "name": "one two three four five six",
        "age": 7,
    }
    assert call["id"]


def test_tools_calls_and_results_arrive(register: Register, server: CloudServer) -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "a", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "two"},
    ]
    named = {"type": "function", "function": {"name": "find_person"}}
    asked = normalize([TOOL], named, parallel=False)
    params = {"logprobs": 2, "logit_bias": {"7": -100}}
    hear(register(), messages=messages, tools=asked, params=params)
    body = server.calls[0].body
    sent = [{name: each[name] for name in each if each[name]} for each in body["messages"]]
    assert sent == [messages[0], {"role": "assistant", "tool_calls": [called]}, messages[2]]
    assert (body["tools"], body["tool_choice"]) == ([TOOL], named)
    assert body["parallel_tool_calls"] is False
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert body["logit_bias"] == {"7": -100}


@pytest.mark.parametrize("kind", [Kind.OPENAI, Kind.ANTHROPIC, Kind.OPENAI_COMPATIBLE])
def test_images_arrive(register: Register, server: CloudServer, kind: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    parts = [{"type": "text", "text": "What?"}, image]
    hear(register(kind), messages=[{"role": "user", "content": parts}])
    assert "iVBORw==" in json.dumps(server.calls[0].body["messages"])


@pytest.mark.parametrize("kind", KINDS)
def test_json_of_a_schema(register: Register, server: CloudServer, kind: str) -> None:
    asked: Any = {"type": "json_schema", "name": "person", "schema": json.dumps(PERSON)}
    text, _ = answer(register(kind), response_format=asked)
    assert json.loads(text) == {"name": "one two three four five six", "age": 7}
    assert '"additionalProperties": false' in json.dumps(server.calls[0].body)


@pytest.mark.parametrize("kind", KINDS)
def test_json_object(register: Register, kind: str) -> None:
    text, progress = answer(register(kind), response_format={"type": "json_object"})
    assert json.loads(text) == {"answer": "one two three four five six"}
    assert (progress.finish_reason, progress.extra) == (FinishReason.STOP, {})


def test_new_claude_gets_the_schema_as_such(register: Register, server: CloudServer) -> None:
    model = register(Kind.ANTHROPIC, model_name="claude-sonnet-4-5")
    asked: Any = {"type": "json_schema", "name": "person", "schema": json.dumps(PERSON)}
    text, _ = answer(model, response_format=asked)
    assert json.loads(text)["age"] == 7
    assert server.calls[0].body["output_format"]["schema"] == PERSON


@pytest.mark.parametrize(
    ("schema", "is_strict"),
    [
        (PERSON, True),
        (PERSON | {"required": ["name"]}, False),
        (PERSON | {"additionalProperties": True}, False),
        (PERSON | {"properties": PERSON["properties"] | {"name": {"minLength": 1}}}, False),
        (PERSON | {"properties": {"name": {"type": "object"}}, "required": ["name"]}, False),
        ({"type": "array", "items": {"type": "string"}}, False),
    ],
)
def test_strict_is_for_schemas_that_openai_guarantees(
    register: Register, server: CloudServer, schema: dict[str, Any], is_strict: bool
) -> None:
    asked: Any = {"type": "json_schema", "name": "x", "schema": json.dumps(schema)}
    answer(register(), response_format=asked)
    assert server.calls[0].body["response_format"]["json_schema"]["strict"] is is_strict


@pytest.mark.parametrize(
    ("kind", "extra_params"),
    [
        (Kind.OPENAI, {"reasoning_effort": "low"}),
        (Kind.ANTHROPIC, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        (Kind.OPENAI_COMPATIBLE, {"reasoning_effort": "low"}),
    ],
)
def test_reasoning_is_kept_beside_the_text(
    register: Register, kind: str, extra_params: dict[str, Any]
) -> None:
    names = {Kind.OPENAI: "gpt-5", Kind.ANTHROPIC: "claude-sonnet-4-5"}
    model = register(kind, model_name=names.get(Kind(kind), "qwen"))
    heard = hear(model, extra_params=extra_params)
    assert heard.text == "one two three four five six"
    assert (heard.reasoning, heard.progress.extra) == ("Let me think.", {})


def test_usage_is_estimated_when_it_is_not_told(register: Register, server: CloudServer) -> None:
    server.faults.append(Fault.NO_USAGE)
    _, progress = answer(register())
    assert progress.extra == {"usage_is_estimated": True}
    assert progress.prompt_tokens >= 6
    assert progress.completion_tokens == 6


def test_answer_that_repeats_itself_is_an_answer(register: Register) -> None:
    text, _ = answer(register(), prompt="again " * 150, params={"max_tokens": 200})
    assert text.split() == ["again"] * 150


@pytest.mark.parametrize(
    ("kind", "extra_params"),
    [
        (Kind.OPENAI, {"user": "u", "metadata": {"a": "b"}, "logit_bias": {"5": 1}}),
        (Kind.OPENAI_COMPATIBLE, {"guided_regex": "a+", "user": "u"}),
        (Kind.ANTHROPIC, {"context_management": {"edits": []}}),
        (Kind.LITELLM, {"logit_bias": {"5": 1}, "guided_regex": "a+"}),
    ],
)
def test_extra_params_arrive_in_the_body(
    register: Register, server: CloudServer, kind: str, extra_params: dict[str, Any]
) -> None:
    server.is_strict = False
    answer(register(kind), extra_params=extra_params)
    assert server.calls[0].body.items() >= extra_params.items()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model", "messages", "stream"])
def test_extra_params_cannot_make_it_another_request(
    register: Register, server: CloudServer, kind: str, name: str
) -> None:
    error = failure(register(kind), extra_params={name: "other"})
    assert (error.code, name in error.message) == (ErrorCode.INVALID_REQUEST, True)
    assert server.calls == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["api_base", "base_url", "mock_response", "custom_llm_provider"])
def test_extra_params_do_not_reach_litellm_itself(
    register: Register, server: CloudServer, kind: str, name: str
) -> None:
    """Where they are not refused, they are a field that the provider does not know."""
    error = failure(register(kind), extra_params={name: "http://127.0.0.1:9"})
    assert error.code == ErrorCode.INVALID_REQUEST
    for call in server.calls:
        assert call.body[name] == "http://127.0.0.1:9"


def test_unknown_fields_are_refused_in_the_providers_words(register: Register) -> None:
    error = failure(register(), extra_params={"colour": "red"})
    assert error.code == ErrorCode.INVALID_REQUEST
    assert "Unrecognized request argument supplied: colour" in error.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [Fault.SERVER_ERROR, Fault.RATE_LIMITED, Fault.DISCONNECT])
def test_failure_that_may_pass_is_tried_again(
    register: Register, server: CloudServer, kind: str, fault: Fault
) -> None:
    server.faults.extend([fault, fault])
    pieces = list(generation(register(kind), Progress()))
    assert "".join(str(piece) for piece in pieces) == "one two three four five six"
    assert len(server.calls) == 3


@pytest.mark.parametrize("max_retries", [0, 1])
def test_retries_come_to_an_end(register: Register, server: CloudServer, max_retries: int) -> None:
    server.faults.extend([Fault.UNAVAILABLE] * 5)
    error = failure(register(max_retries=max_retries))
    assert (error.code, error.retryable) == (ErrorCode.PROVIDER_UNAVAILABLE, True)
    assert len(server.calls) == max_retries + 1


@pytest.mark.parametrize("fault", [Fault.UNAUTHORIZED, Fault.INVALID, Fault.NO_QUOTA])
def test_failure_that_stays_is_not_tried_again(
    register: Register, server: CloudServer, fault: Fault
) -> None:
    server.faults.append(fault)
    assert not failure(register()).retryable
    assert len(server.calls) == 1


@pytest.mark.parametrize("kind", [Kind.OPENAI, Kind.ANTHROPIC, Kind.LITELLM])
def test_retry_waits_as_long_as_the_provider_says(
    register: Register, server: CloudServer, kind: str
) -> None:
    server.retry_after = "0.3"
    server.faults.append(Fault.RATE_LIMITED)
    answer(register(kind))
    first, second = server.calls
    assert second.at - first.at >= 0.3


def test_longer_wait_gives_the_place_back(register: Register, server: CloudServer) -> None:
    server.retry_after = "12"
    server.faults.append(Fault.RATE_LIMITED)
    with pytest.raises(RetryLater) as caught:
        answer(register(), num_retries=1)
    assert 12 <= caught.value.seconds < 13
    assert (caught.value.num_retries, caught.value.failure.code) == (2, ErrorCode.RATE_LIMITED)


def test_retries_of_earlier_attempts_count(register: Register, server: CloudServer) -> None:
    server.faults.extend([Fault.UNAVAILABLE] * 5)
    failure(register(max_retries=2), num_retries=1)
    assert len(server.calls) == 2


def test_nobody_waits_for_very_long(register: Register, server: CloudServer) -> None:
    server.retry_after = "61"
    server.faults.append(Fault.RATE_LIMITED)
    assert failure(register()).retry_after == 61
    assert len(server.calls) == 1


def test_fallback_does_not_wait_for_a_model_that_is_down(
    register: Register, server: CloudServer
) -> None:
    server.retry_after = "1"
    server.faults.append(Fault.UNAVAILABLE)
    assert failure(register(), has_fallback=True).code == ErrorCode.PROVIDER_UNAVAILABLE
    assert len(server.calls) == 1


def test_open_circuit_keeps_the_provider_from_being_asked(
    register: Register, server: CloudServer
) -> None:
    model = register(max_retries=0)
    for _ in range(settings.CIRCUIT_FAILURES):
        server.faults.append(Fault.SERVER_ERROR)
        failure(model)
    server.calls.clear()
    assert failure(model, has_fallback=True).retry_after is not None
    assert server.calls == []


MIDWAY = (Fault.CUT, Fault.ENDS_EARLY, Fault.ERROR_MIDWAY, Fault.INVALID_JSON)


@pytest.mark.parametrize("fault", MIDWAY)
@pytest.mark.parametrize("kind", [Kind.OPENAI, Kind.ANTHROPIC])
def test_answer_that_breaks_off_starts_over(
    register: Register, server: CloudServer, kind: str, fault: Fault
) -> None:
    server.faults.append(fault)
    progress = Progress()
    pieces = list(generation(register(kind), progress))
    [start_over] = [piece for piece in pieces if isinstance(piece, StartOver)]
    assert start_over.failure.code == ErrorCode.PROVIDER_UNAVAILABLE
    after = pieces[pieces.index(start_over) + 1 :]
    assert "".join(str(piece) for piece in after) == "one two three four five six"
    assert progress.completion_tokens == 6


@pytest.mark.parametrize("fault", [None, Fault.ENDS_EARLY, Fault.CUT, Fault.ERROR_MIDWAY])
def test_stream_that_only_litellm_can_read(
    register: Register, server: CloudServer, fault: Fault | None
) -> None:
    """It makes up an end and a usage where there is none, which must not pass for the truth."""
    server.faults.append(fault)
    progress = Progress()
    model = register(Kind.LITELLM, model_name="mistral/mistral-small-latest")
    pieces = list(generation(model, progress))
    starts = [index for index, piece in enumerate(pieces) if isinstance(piece, StartOver)]
    assert len(starts) == (fault is not None)
    rest = pieces[starts[0] + 1 :] if starts else pieces
    assert "".join(str(piece) for piece in rest) == "one two three four five six"
    assert progress.extra == {"usage_is_estimated": True}  # Mistral's API is not asked for it


def test_start_over_makes_another_attempt_of_the_task(
    register: Register, server: CloudServer, new_task: NewTask
) -> None:
    register()
    server.faults.append(Fault.CUT)
    task = new_task(model="cloud", prompt="one two three four five six")
    execute(claimed(task))
    task = fresh(task)
    assert task.result is not None
    assert (task.status, task.result["text"]) == ("completed", "one two three four five six")
    assert outcomes(task) == ["failed", "completed"]


def test_task_of_a_cloud_model_runs(
    register: Register, server: CloudServer, new_task: NewTask
) -> None:
    register()
    task = new_task(model="cloud", output_schema=PERSON, prompt="Ann", temperature=0.5)
    execute(claimed(task))
    result = fresh(task).result
    assert result is not None
    assert (result["parsed"], result["finish_reason"]) == ({"name": "Ann", "age": 7}, "stop")
    assert server.calls[0].body["temperature"] == 0.5


def test_failed_task_tells_what_to_do(
    register: Register, server: CloudServer, new_task: NewTask
) -> None:
    register()
    server.faults.append(Fault.UNAUTHORIZED)
    task = new_task(model="cloud")
    execute(claimed(task))
    task = fresh(task)
    assert (task.status, task.error_code) == ("failed", "authentication_failed")
    assert task.error is not None
    assert "STAND_IN_API_KEY" in task.error


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.HANG_MIDWAY, Fault.DRIP])
@pytest.mark.parametrize("kind", KINDS)
def test_cancelling_the_generator_hangs_up(
    register: Register, server: CloudServer, kind: str, fault: Fault
) -> None:
    server.faults.append(fault)
    progress = Progress()
    generating = start(provider_for(register(kind)).generate(request(), progress))
    wait_until(lambda: server.calls and (fault == Fault.HANG or progress.completion_tokens))
    generating.cancel()
    [call] = server.calls
    wait_until(lambda: call.closed_at, seconds=2)


def test_calls_that_are_given_up_leave_nothing_behind(
    register: Register, server: CloudServer
) -> None:
    model = register()
    progresses = [Progress() for _ in range(10)]
    server.faults.extend([Fault.HANG_MIDWAY] * 10)
    generating = [start(provider_for(model).generate(request(), each)) for each in progresses]
    wait_until(lambda: all(progress.completion_tokens for progress in progresses))
    for each in generating:
        each.cancel()

    async def num_tasks() -> int:
        return len(asyncio.all_tasks())

    wait_until(lambda: wait(num_tasks()) == 1)  # its own
    wait_until(lambda: all(call.closed_at for call in server.calls))


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.HANG_MIDWAY])
@pytest.mark.parametrize("kind", KINDS)
def test_silent_provider_times_out(
    register: Register, server: CloudServer, kind: str, fault: Fault
) -> None:
    server.faults.append(fault)
    error = failure(register(kind, timeout=0.5, max_retries=0))
    assert (error.code, error.retryable) == (ErrorCode.PROVIDER_TIMEOUT, True)
    assert "0.5 s" in error.message
    wait_until(lambda: server.calls[0].closed_at)


def test_text_that_was_filtered_is_an_error(register: Register, server: CloudServer) -> None:
    server.faults.append(Fault.FILTERED)
    error = failure(register())
    assert (error.code, error.retryable) == (ErrorCode.CONTENT_FILTERED, False)


HISTORY = [
    {"role": "system", "content": "Be brief."},
    *({"role": role, "content": f"{n} " * 40} for n in range(5) for role in ("user", "assistant")),
    {"role": "user", "content": "The last question."},
]


def test_oldest_turns_are_dropped_to_fit_the_window(
    register: Register, server: CloudServer
) -> None:
    model = register(context_window=400)
    _, progress = answer(model, messages=HISTORY, params={"max_tokens": 100})
    sent = server.calls[0].body["messages"]
    dropped = progress.extra["truncated_messages"]
    assert 0 < dropped < 10
    assert sent == [HISTORY[0], *HISTORY[1 + dropped :]]


def test_long_history_can_be_an_error(register: Register, server: CloudServer) -> None:
    error = failure(register(context_window=400), messages=HISTORY, context_overflow="error")
    assert error.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert server.calls == []


def test_short_history_stays_as_it_is(register: Register, server: CloudServer) -> None:
    _, progress = answer(register(context_window=100_000), messages=HISTORY)
    assert server.calls[0].body["messages"] == HISTORY
    assert progress.extra == {}


@pytest.mark.parametrize("kind", KINDS)
def test_no_key_is_taken_from_elsewhere(
    register: Register, server: CloudServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI", "ANTHROPIC", "DEEPSEEK", "CUSTOM_OPENAI"):
        monkeypatch.setenv(f"{name}_API_KEY", "not-for-this-model")
    server.key = None
    answer(register(kind, api_key_env_var=None))
    [call] = server.calls
    assert "not-for-this-model" not in str(call.headers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [None, *Fault])
def test_key_is_told_to_nobody(
    register: Register,
    server: CloudServer,
    kind: str,
    fault: Fault | None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("DEBUG")
    server.faults.append(fault)
    told: list[object] = []
    try:
        told.extend(generation(register(kind, timeout=0.5, max_retries=0), Progress()))
    except InferenceError as error:
        told += [error.message, repr(error), error.__cause__, error.__context__]
    printed = capfd.readouterr()
    assert KEY in str(server.calls[0].headers)
    assert KEY not in f"{told} {caplog.text} {printed}"


def test_many_threads_ask_at_once(register: Register, server: CloudServer) -> None:
    model = register()
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        texts[number] = answer(model, prompt=f"number {number} speaks")[0]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert texts == {n: f"number {n} speaks" for n in range(24)}


def test_cancel_of_a_running_task_hangs_up(
    register: Register, server: CloudServer, new_task: NewTask
) -> None:
    register()
    server.faults.append(Fault.HANG_MIDWAY)
    task = new_task(model="cloud")
    lease = claimed(task)
    asked_at: list[float] = []

    def cancel() -> None:
        wait_until(lambda: client().xlen(stream_key(task.pk)))
        asked_at.append(time.monotonic())
        lease.cancel_requested = True

    canceller = threading.Thread(target=cancel)
    canceller.start()
    execute(lease)
    canceller.join()
    assert time.monotonic() - asked_at[0] < 10
    assert fresh(task).status == "cancelled"
    wait_until(lambda: server.calls[0].closed_at, seconds=2)
