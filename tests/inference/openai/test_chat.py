"""POST /v1/chat/completions, up to the queue and back."""

import json
from typing import Any

import pytest
from rest_framework.test import APIClient

from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import finish
from inference.models import GenerationTask, RegisteredModel
from monitoring.streams.delta_stream import DeltaWriter
from tests.conftest import Valkey
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed
from tests.inference.openai.worker import ask, completing, failing

pytestmark = pytest.mark.django_db(transaction=True)

CHAT = "/v1/chat/completions"
MESSAGE = {"role": "user", "content": "Hi"}
BODY = {"model": "echo", "messages": [MESSAGE]}


@pytest.fixture(autouse=True)
def _model(valkey: Valkey, echo: RegisteredModel) -> None:
    """Every test has a broker and the model."""


def only_task() -> GenerationTask:
    return GenerationTask.objects.get()


def chunks(text: str) -> list[Any]:
    """The bodies of a stream's events; the last one is as it is."""
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    return [json.loads(event) for event in events[:-1]] + events[-1:]


def test_answer_has_the_shape_of_openai() -> None:
    response = ask(CHAT, BODY, completing("an answer"))
    task = only_task()
    assert response.status_code == 200
    assert response.headers["X-Task-Id"] == task.pk
    assert response.json() == {
        "id": f"chatcmpl-{task.pk.removeprefix('task_')}",
        "object": "chat.completion",
        "created": int(task.created_at.timestamp()),
        "model": "echo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "an answer", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "system_fingerprint": None,
    }


def test_stream_has_the_shape_of_openai() -> None:
    body = BODY | {"stream": True, "stream_options": {"include_usage": True}}
    response = ask(CHAT, body, completing("an answer", "length"))
    task = only_task()
    assert response.headers["X-Task-Id"] == task.pk
    assert response.headers["Content-Type"] == "text/event-stream"
    *found, usage, done = chunks(response.text)
    head = {
        "id": f"chatcmpl-{task.pk.removeprefix('task_')}",
        "object": "chat.completion.chunk",
        "created": int(task.created_at.timestamp()),
        "model": "echo",
        "system_fingerprint": None,
        "usage": None,
    }

    def choice(delta: Any, finish_reason: str | None = None) -> Any:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    assert found == [
        head | {"choices": [choice({"role": "assistant", "content": "", "refusal": None})]},
        head | {"choices": [choice({"content": "an"})]},
        head | {"choices": [choice({"content": " answer"})]},
        head | {"choices": [choice({}, "length")]},
    ]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 5)
    assert done == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_choices_come_from_tasks_of_their_own(stream: bool) -> None:
    body = BODY | {"n": 3, "seed": 7, "stream": stream}
    response = ask(CHAT, body, *map(completing, ("one", "two two", "three")))
    tasks = list(GenerationTask.objects.order_by("created_at"))
    assert response.headers["X-Task-Id"] == ",".join(task.pk for task in tasks)
    assert [task.request["params"]["seed"] for task in tasks] == [7, 8, 9]
    texts = ["", "", ""]
    if stream:
        for chunk in chunks(response.text)[:-1]:
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "")
    else:
        texts = [choice["message"]["content"] for choice in response.json()["choices"]]
        assert response.json()["usage"]["completion_tokens"] == 6
        assert response.json()["usage"]["prompt_tokens"] == 3
    assert texts == ["one", "two two", "three"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (ErrorCode.CONTEXT_LENGTH_EXCEEDED, 400, "invalid_request_error"),
        (ErrorCode.RATE_LIMITED, 429, "rate_limit_error"),
        (ErrorCode.WORKER_LOST, 500, "server_error"),
        (ErrorCode.TIMEOUT, 504, "server_error"),
    ],
)
def test_failure_before_any_text_has_its_status(
    stream: bool, code: ErrorCode, status: int, kind: str
) -> None:
    response = ask(CHAT, BODY | {"stream": stream}, failing(code))
    assert response.status_code == status
    assert response.headers["X-Task-Id"] == only_task().pk
    assert response.headers["X-Should-Retry"] == "false"
    error = response.json()["error"]
    assert (error["message"], error["type"]) == ("It went wrong.", kind)


def test_failure_after_some_text_is_an_event() -> None:
    response = ask(CHAT, BODY | {"stream": True}, failing(ErrorCode.TIMEOUT, text="so far"))
    assert response.status_code == 200
    *_, text, error = response.text.strip().split("\n\n")
    assert "so far" in text
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "timeout"


def test_first_failure_of_several_choices_cancels_the_others() -> None:
    response = ask(CHAT, BODY | {"n": 2}, failing(ErrorCode.PROVIDER_ERROR), lambda task: None)
    assert response.status_code == 502
    assert [task.status for task in GenerationTask.objects.order_by("created_at")] == [
        "failed",
        "cancelled",
    ]


def test_fields_reach_the_task() -> None:
    body = BODY | {
        "max_completion_tokens": 9,
        "repetition_penalty": 1.5,
        "stop": "END",
        "temperature": None,
        "metadata": {"team": "blue"},
        "user": "someone",
        "store": True,
        "service_tier": "auto",
        "messages": [
            {"role": "developer", "content": "Be brief.", "name": None},
            *BODY["messages"],
        ],
    }
    assert ask(CHAT, body, completing(), **{"X-Priority": "70"}).status_code == 200
    task = only_task()
    assert (task.priority, task.metadata) == (70, {"team": "blue"})
    params = {"max_tokens": 9, "repeat_penalty": 1.5, "stop_sequences": ["END"]}
    assert params.items() <= task.request["params"].items()
    assert [message["role"] for message in task.request["messages"]] == ["system", "user"]


def test_same_idempotency_key_gives_the_first_answer() -> None:
    headers = {"Idempotency-Key": "again"}
    first = ask(CHAT, BODY | {"n": 2}, completing("one"), completing("two"), **headers)
    assert ask(CHAT, BODY | {"n": 2}, **headers).json() == first.json()
    assert ask(CHAT, BODY, **headers).status_code == 409


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "gone"}, 404, "model", "model_not_found"),
        ({"temprature": 1}, 400, "temprature", "invalid_value"),
        ({"functions": []}, 400, "functions", "invalid_value"),
        ({"n": 9}, 400, "n", "invalid_value"),
        ({"messages": None}, 400, "messages", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, 400, "max_completion_tokens", None),
    ],
)
def test_refusal_names_the_parameter(
    api: APIClient, fields: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    response = api.post(CHAT, BODY | fields, format="json")
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code or "invalid_value")
    assert not GenerationTask.objects.exists()


def test_field_of_cloud_models_is_named_where_no_other_takes_it(api: APIClient) -> None:
    response = api.post(CHAT, BODY | {"reasoning_effort": "low"}, format="json")
    assert response.status_code == 400
    assert "no reasoning_effort: leave it out" in response.json()["error"]["message"]


@pytest.mark.parametrize("priority", ["-1", "101", "high", "nan"])
def test_priority_that_is_none_is_refused(api: APIClient, priority: str) -> None:
    response = api.post(CHAT, BODY, format="json", headers={"X-Priority": priority})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "X-Priority")


CALL: Any = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Bonn"}'},
}
LOGPROB: Any = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}


def calling(task: GenerationTask) -> None:
    """Thinks, and calls a tool."""
    lease = claimed(task)
    writer = DeltaWriter(task.pk, lease.attempt)
    writer.write_reasoning("Which city?", [LOGPROB])
    first, rest = CALL["function"]["arguments"][:5], CALL["function"]["arguments"][5:]
    writer.write_tool_call(
        {"index": 0, **CALL, "function": {"name": "weather", "arguments": first}}
    )
    writer.write_tool_call({"index": 0, "function": {"arguments": rest}})
    writer.flush()
    beside = {"reasoning_content": "Which city?", "tool_calls": [CALL]}
    logprobs = {"logprobs": {"content": [LOGPROB]}}
    result: Any = answer("", "tool_calls") | beside | logprobs
    finish.complete(lease, result, TIMINGS)


def test_calls_and_reasoning_are_apart_from_the_text() -> None:
    [choice] = ask(CHAT, BODY, calling).json()["choices"]
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "reasoning_content": "Which city?",
            "tool_calls": [CALL],
        },
        "logprobs": {"content": [LOGPROB], "refusal": None},
        "finish_reason": "tool_calls",
    }


def test_calls_and_reasoning_are_streamed() -> None:
    found = chunks(ask(CHAT, BODY | {"stream": True}, calling).text)[1:-1]
    choices = [chunk["choices"][0] for chunk in found]
    assert choices[0]["delta"] == {"reasoning_content": "Which city?"}
    assert choices[0]["logprobs"] == {"content": [LOGPROB], "refusal": None}
    parts = [choice["delta"]["tool_calls"][0] for choice in choices[1:-1]]
    assert {name: parts[0][name] for name in ("index", "id", "type")} == {
        "index": 0,
        "id": "call_1",
        "type": "function",
    }
    written = "".join(part["function"]["arguments"] for part in parts)
    assert written == CALL["function"]["arguments"]
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_answer_may_come_back_as_it_was_given() -> None:
    given = ask(CHAT, BODY, calling).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "rain", "name": "weather"}
    body = BODY | {"messages": [MESSAGE, {**given, "annotations": []}, result]}
    assert ask(CHAT, body, completing()).status_code == 200
    task = GenerationTask.objects.order_by("created_at").last()
    assert task is not None
    assert task.request["messages"] == [
        MESSAGE,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_answer_of_reasoning_alone_may_come_back(field: str) -> None:
    empty = {"role": "assistant", "content": "", "refusal": None, field: "Hm"}
    spoken = {"role": "assistant", "content": "Yes.", field: "Hm"}
    body = BODY | {"messages": [MESSAGE, empty, MESSAGE, spoken, MESSAGE]}
    assert ask(CHAT, body, completing()).status_code == 200
    answered = {"role": "assistant", "content": "Yes."}
    assert only_task().request["messages"] == [MESSAGE, MESSAGE, answered, MESSAGE]


def test_tokens_of_reasoning_are_told() -> None:
    def reasoning(task: GenerationTask) -> None:
        result = answer("Yes.")
        result["usage"]["reasoning_tokens"] = 2
        finish.complete(claimed(task), result, TIMINGS)

    response = ask(CHAT, BODY | {"n": 2}, reasoning, reasoning)
    assert response.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


@pytest.mark.parametrize("stream", [False, True])
def test_structured_output_that_was_cut_is_an_answer(stream: bool) -> None:
    def cut(task: GenerationTask) -> None:
        failure = InferenceError("It was cut.", ErrorCode.STRUCTURED_OUTPUT_INVALID)
        finish.fail(claimed(task), failure, answer('{"a": ', "length"), TIMINGS)

    response = ask(CHAT, BODY | {"stream": stream}, cut)
    assert response.status_code == 200
    choices = [chunk["choices"][0] for chunk in chunks(response.text)[:-1]] if stream else []
    [last] = choices[-1:] or response.json()["choices"]
    assert last["finish_reason"] == "length"
