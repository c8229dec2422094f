"""/v1/responses, up to the queue and back."""

import json
from typing import Any

import httpx
import pytest
from rest_framework.test import APIClient

from conversations.models import Conversation
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import claim, finish
from inference.models import GenerationTask, RegisteredModel, WebhookDelivery
from inference.openai.responses.request import response_request
from monitoring.api.principal import Principal, Scope
from monitoring.streams import delta_stream
from tests.conftest import Valkey, client_of
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, expire
from tests.inference.openai.worker import ask, completing, failing
from tests.sopllm.test_handler import talk

pytestmark = pytest.mark.django_db(transaction=True)

PATH = "/v1/responses"
BODY: dict[str, Any] = {"model": "echo", "input": "Hi"}
ALICE = Principal("a key", "alice", frozenset({Scope.TASKS}))


@pytest.fixture(autouse=True)
def _model(valkey: Valkey, echo: RegisteredModel) -> None:
    """Every test has a broker and the model."""


def only_task() -> GenerationTask:
    return GenerationTask.objects.get()


def created(api: APIClient, **fields: Any) -> Any:
    """A response in the background, that nobody works on."""
    response = api.post(PATH, BODY | {"background": True} | fields, format="json")
    assert response.status_code == 200, response.json()
    return response.json()


def end(response_id: str, text: str = "an answer", finish_reason: str = "stop") -> None:
    completing(text, finish_reason)(GenerationTask.objects.get(pk=task_id(response_id)))


def task_id(response_id: str) -> str:
    return response_id.replace("resp_", "task_")


def events_of(response: httpx.Response) -> list[Any]:
    events = [json.loads(text.partition("data: ")[2]) for text in response.text.split("\n\n")[:-1]]
    names = [text.partition("\n")[0] for text in response.text.split("\n\n")[:-1]]
    assert names == [f"event: {event['type']}" for event in events]
    return events


def read_events(response_id: str, starting_after: int | None = None) -> list[Any]:
    """The events of a response that has ended."""

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        query = {} if starting_after is None else {"starting_after": starting_after}
        return await client.get(f"{PATH}/{response_id}", params={"stream": "true", **query})

    response: httpx.Response = talk(conversation)
    assert response.status_code == 200, response.text
    return events_of(response)


def text_of(events: list[Any]) -> str:
    return "".join(each["delta"] for each in events if each["type"].endswith("text.delta"))


def test_response_has_the_shape_of_openai() -> None:
    response = ask(PATH, BODY | {"metadata": {"team": "blue"}}, completing("an answer"))
    task = only_task()
    assert (response.status_code, response.headers["X-Task-Id"]) == (200, task.pk)
    key = task.pk.removeprefix("task_")
    text = {"type": "output_text", "text": "an answer", "annotations": [], "logprobs": []}
    assert task.finished_at is not None
    assert response.json() == {
        "id": f"resp_{key}",
        "object": "response",
        "created_at": int(task.created_at.timestamp()),
        "completed_at": int(task.finished_at.timestamp()),
        "status": "completed",
        "background": False,
        "store": True,
        "model": "echo",
        "output": [
            {
                "type": "message",
                "id": f"msg_{key}",
                "status": "completed",
                "role": "assistant",
                "content": [text],
            }
        ],
        "error": None,
        "incomplete_details": None,
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 5,
        },
        "instructions": None,
        "previous_response_id": None,
        "conversation": None,
        "max_output_tokens": None,
        "temperature": None,
        "top_p": None,
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": None, "summary": None},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "truncation": "disabled",
        "metadata": {"team": "blue"},
        "service_tier": "default",
        "user": None,
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


def test_fields_reach_the_task() -> None:
    body = BODY | {
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "Really."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "A"}]},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "B", "annotations": []}],
            },
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"role": "user", "content": "C"},
        ],
        "max_output_tokens": 9,
        "temperature": 0.5,
        "top_p": None,
        "seed": 7,
        "truncation": "auto",
        "include": ["reasoning.encrypted_content"],
        "user": "someone",
        "service_tier": "auto",
        "text": {"format": {"type": "text"}},
        "tools": [],
        "stream_options": {"include_obfuscation": False},
    }
    response = ask(PATH, body, completing(), **{"X-Priority": "70"})
    assert response.status_code == 200, response.text
    task = only_task()
    assert task.request["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Really."},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    params = {"max_tokens": 9, "temperature": 0.5, "seed": 7}
    assert params.items() <= task.request["params"].items()
    assert (task.priority, task.request["context_overflow"]) == (70, "truncate")
    shown = response.json()
    assert (shown["user"], shown["service_tier"]) == ("someone", "auto")
    assert (shown["instructions"], shown["max_output_tokens"]) == ("Be brief.", 9)


def test_schema_is_a_response_format(api: APIClient) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    described = {"type": "json_schema", "name": "one", "schema": schema, "strict": True}
    response = api.post(
        PATH, BODY | {"background": True, "text": {"format": described}}, format="json"
    )
    # The echo model has no structured output, and the refusal names OpenAI's field.
    assert (response.status_code, response.json()["error"]["param"]) == (400, "text")
    broken = described | {"schema": {"type": "nothing"}}
    response = api.post(PATH, BODY | {"text": {"format": broken}}, format="json")
    assert "The schema cannot be used" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"inptu": 1}, "inptu"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [7]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"role": "user", "content": "A", "colour": "red"}]}, "input"),
        ({"input": [{"role": "wizard", "content": "A"}]}, "input"),
        ({"input": [{"role": "user"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [7]}]}, "input"),
        ({"input": [{"role": "user", "content": "A"}] * 1001}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True, "store": False}, "store"),
        ({"conversation": 7}, "conversation"),
        ({"conversation": "conv_gone"}, "conversation"),
        ({"conversation": "conv_gone", "previous_response_id": "r"}, "previous_response_id"),
        ({"text": {"format": {"type": "poem"}}}, "text"),
        ({"text": {"verbosity": "low"}}, "extra_params"),
        ({"text": {"colour": "red"}}, "text"),
        ({"reasoning": {"effort": "low"}}, "extra_params"),
        ({"include": ["everything"]}, "include"),
        ({"truncation": "some"}, "truncation"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
    ],
)
def test_refusal_names_the_parameter(api: APIClient, fields: dict[str, Any], param: str) -> None:
    response = api.post(PATH, BODY | fields, format="json")
    assert response.status_code == 400, response.json()
    error = response.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert not GenerationTask.objects.exists()


def test_unknown_model_is_not_found(api: APIClient) -> None:
    response = api.post(PATH, BODY | {"model": "gone"}, format="json")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_failure_in_the_foreground_is_an_error() -> None:
    response = ask(PATH, BODY, failing(ErrorCode.RATE_LIMITED))
    assert (response.status_code, response.json()["error"]["type"]) == (429, "rate_limit_error")


def test_background_response_is_answered_at_once_and_read_later(api: APIClient) -> None:
    first = created(api, metadata={"a": 1})
    assert (first["status"], first["output"], first["usage"]) == ("queued", [], None)
    address = f"{PATH}/{first['id']}"
    lease = claim.claim(task_id(first["id"]))
    assert lease is not None
    assert api.get(address).json()["status"] == "in_progress"
    finish.complete(lease, answer("cut", "length"), TIMINGS)
    found = api.get(address)
    assert found.headers["X-Task-Id"] == task_id(first["id"])
    body = found.json()
    assert (body["status"], body["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert (body["output"][0]["status"], body["completed_at"]) == ("incomplete", None)


def test_failed_response_says_why(api: APIClient) -> None:
    number = created(api)["id"]
    failing(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "Too long.")(only_task())
    body = api.get(f"{PATH}/{number}").json()
    assert (body["status"], body["output"]) == ("failed", [])
    assert body["error"] == {"code": "invalid_prompt", "message": "Too long."}


def test_structured_output_that_was_cut_is_incomplete(api: APIClient) -> None:
    number = created(api)["id"]
    lease = claim.claim(task_id(number))
    assert lease is not None
    failure = InferenceError("It was cut.", ErrorCode.STRUCTURED_OUTPUT_INVALID)
    finish.fail(lease, failure, answer('{"a": ', "length"), TIMINGS)
    body = api.get(f"{PATH}/{number}").json()
    assert (body["status"], body["error"]) == ("incomplete", None)
    assert body["output"][0]["content"][0]["text"] == '{"a": '
    assert read_events(number)[-1] == {
        "type": "response.incomplete",
        "sequence_number": 13,
        "response": body,
    }


def test_response_that_is_not_stored_cannot_be_read(api: APIClient) -> None:
    response = ask(PATH, BODY | {"store": False}, completing())
    address = f"{PATH}/{response.json()['id']}"
    assert api.get(address).status_code == 404
    assert api.delete(address).status_code == 404
    refused = api.post(PATH, BODY | {"previous_response_id": response.json()["id"]}, format="json")
    assert refused.status_code == 404


def test_task_of_another_route_is_no_response(api: APIClient, new_task: Any) -> None:
    assert api.get(f"{PATH}/{new_task().response_id}").status_code == 404


def test_cancel_keeps_what_is_there(api: APIClient) -> None:
    number = created(api)["id"]
    body = api.post(f"{PATH}/{number}/cancel").json()
    assert (body["id"], body["status"], body["output"]) == (number, "cancelled", [])
    assert api.post(f"{PATH}/{number}/cancel").json() == body


def test_delete(api: APIClient) -> None:
    number = created(api)["id"]
    refused = api.delete(f"{PATH}/{number}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    end(number)
    assert api.delete(f"{PATH}/{number}").json() == {
        "id": number,
        "object": "response",
        "deleted": True,
    }
    assert api.get(f"{PATH}/{number}").status_code == 404


def test_response_of_somebody_else_is_not_found(api: APIClient) -> None:
    number = created(api)["id"]
    alice = client_of(ALICE)
    for method, end_of_path in (
        ("get", ""),
        ("get", "?stream=true"),
        ("delete", ""),
        ("post", "/cancel"),
        ("get", "/input_items"),
    ):
        response = getattr(alice, method)(f"{PATH}/{number}{end_of_path}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    refused = alice.post(PATH, BODY | {"previous_response_id": number}, format="json")
    assert refused.status_code == 404
    assert only_task().status == "pending"


def test_previous_response_is_the_history(api: APIClient) -> None:
    first = created(api, instructions="Be brief.")["id"]
    refused = api.post(PATH, BODY | {"previous_response_id": first}, format="json")
    assert refused.json()["error"]["param"] == "previous_response_id"
    end(first, "one")
    second = created(api, input="And?", previous_response_id=first)["id"]
    end(second, "two")
    third = created(api, input="More?", instructions="Be long.", previous_response_id=second)
    assert GenerationTask.objects.get(pk=task_id(third["id"])).request["messages"] == [
        {"role": "system", "content": "Be long."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "More?"},
    ]
    assert third["previous_response_id"] == second
    [item] = api.get(f"{PATH}/{third['id']}/input_items").json()["data"]
    assert item["content"] == [{"type": "input_text", "text": "More?"}]


def test_conversation_gives_the_history_and_gets_the_turn(api: APIClient) -> None:
    conversation = Conversation.objects.create(owner="local", system_prompt="Be brief.")
    first = created(api, conversation={"id": conversation.pk})
    assert first["conversation"] == {"id": conversation.pk}
    end(first["id"], "one")
    assert [each.content for each in conversation.messages.all()] == ["Hi", "one"]
    assert api.get(f"{PATH}/{first['id']}/input_items").json()["data"][0]["role"] == "user"
    for fields, param in (
        ({"previous_response_id": first["id"]}, "previous_response_id"),
        ({"conversation": conversation.pk, "instructions": "Be long."}, "instructions"),
        ({"conversation": conversation.pk, "input": [{"role": "system", "content": "A"}]}, "input"),
    ):
        response = api.post(PATH, BODY | fields, format="json")
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_input_items_by_page(api: APIClient) -> None:
    words = ["a", "b", "c"]
    items = [{"role": "user", "content": word} for word in words]
    number = created(api, instructions="Be brief.", input=items)["id"]
    address = f"{PATH}/{number}/input_items"
    newest = api.get(address, {"limit": 2}).json()
    texts = [item["content"][0]["text"] for item in newest["data"]]
    assert (texts, newest["has_more"]) == (["c", "b"], True)
    rest = api.get(address, {"after": newest["last_id"]}).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["a"]
    assert (rest["has_more"], rest["first_id"]) == (False, rest["last_id"])
    oldest = api.get(address, {"order": "asc"}).json()["data"]
    assert [item["content"][0]["text"] for item in oldest] == words
    for query in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "gone"}, {"x": "y"}):
        assert api.get(address, query).status_code == 400


def test_events_have_the_names_and_order_of_openai() -> None:
    response = ask(PATH, BODY | {"stream": True}, completing("an answer"))
    assert response.headers["X-Task-Id"] == only_task().pk
    events = events_of(response)
    assert [(event["sequence_number"], event["type"]) for event in events] == [
        (0, "response.created"),
        (1, "response.in_progress"),
        (2, "response.output_item.added"),
        (3, "response.content_part.added"),
        (5, "response.output_text.delta"),
        (12, "response.output_text.delta"),
        (13, "response.output_text.done"),
        (14, "response.content_part.done"),
        (15, "response.output_item.done"),
        (16, "response.completed"),
    ]
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert (last["status"], last["usage"]["total_tokens"]) == ("completed", 5)
    assert events[-2]["item"] == last["output"][0]
    assert {event.get("item_id", last["output"][0]["id"]) for event in events} == {
        last["output"][0]["id"]
    }
    assert (text_of(events), events[6]["text"]) == ("an answer", "an answer")


def test_resumed_stream_has_the_rest_at_every_event(api: APIClient) -> None:
    number = created(api)["id"]
    end(number, "one two three", "length")
    whole = read_events(number)
    assert [whole[0]["response"]["status"], whole[-1]["type"]] == ["queued", "response.incomplete"]
    for index, event in enumerate(whole):
        assert read_events(number, event["sequence_number"]) == whole[index + 1 :]


def test_resumed_stream_has_the_rest_though_redis_has_lost_the_deltas(api: APIClient) -> None:
    number = created(api)["id"]
    end(number, "one two three")
    whole = read_events(number)
    delta_stream.delete([task_id(number)])
    for index, event in enumerate(whole):
        rest = read_events(number, event["sequence_number"])
        assert text_of(whole[: index + 1]) + text_of(rest) == "one two three"
        assert (rest or whole)[-1] == whole[-1]
        numbers = [each["sequence_number"] for each in rest]
        assert numbers == sorted({*numbers})
        assert all(each > event["sequence_number"] for each in numbers)


def test_answer_of_another_attempt_is_no_rest(api: APIClient) -> None:
    number = created(api)["id"]
    task = only_task()
    lease = claim.claim(task.pk)
    assert lease is not None
    writer = delta_stream.DeltaWriter(task.pk, lease.attempt)
    writer.write("void")
    writer.flush()
    expire(task)
    GenerationTask.objects.filter(pk=task.pk).update(status="pending", lease_until=None, worker="")
    end(number, "an answer")
    after_opening = read_events(number, 1)
    assert text_of(after_opening) == "an answer"
    assert after_opening[-1]["response"]["status"] == "completed"
    [error] = read_events(number, 7)
    assert (error["type"], error["code"], error["sequence_number"]) == ("error", "worker_lost", 8)


def call(number: int, arguments: str) -> Any:
    function = {"name": "weather", "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


def test_output_of_an_empty_answer_may_come_back() -> None:
    output = ask(PATH, BODY, completing("")).json()["output"]
    assert [item["type"] for item in output] == ["message"]
    question = {"role": "user", "content": "And now?"}
    body = BODY | {"input": [question, *output, question]}
    assert ask(PATH, body, completing()).status_code == 200
    last = GenerationTask.objects.order_by("created_at").last()
    assert last is not None
    assert last.request["messages"] == [question, question]


def end_with_calls(response_id: str) -> None:
    """Streams some reasoning, text and two calls, and completes with them."""
    task = GenerationTask.objects.get(pk=task_id(response_id))
    lease = claim.claim(task.pk)
    assert lease is not None
    calls = [call(0, '{"city": "Bonn"}'), call(1, "")]
    writer = delta_stream.DeltaWriter(task.pk, lease.attempt)
    writer.write_reasoning("Let me ")
    writer.write_reasoning("think.")
    writer.write("I ask.")
    writer.write_tool_call({"index": 0, **call(0, "")})
    for part in ('{"city": ', '"Bonn"}'):
        writer.write_tool_call({"index": 0, "function": {"arguments": part}})
    writer.write_tool_call({"index": 1, **calls[1]})
    writer.flush()
    result = answer("I ask.", "tool_calls")
    result["reasoning_content"] = "Let me think."
    result["usage"]["reasoning_tokens"] = 2
    result["tool_calls"] = calls
    finish.complete(lease, result, TIMINGS)


@pytest.mark.parametrize("has_deltas", [True, False])
def test_reasoning_text_and_calls_are_items(api: APIClient, has_deltas: bool) -> None:
    number = created(api)["id"]
    end_with_calls(number)
    key = number.removeprefix("resp_")
    response = api.get(f"{PATH}/{number}").json()
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    output = response["output"]
    text = {"type": "output_text", "text": "I ask.", "annotations": [], "logprobs": []}
    head = {"type": "function_call", "status": "completed", "name": "weather"}
    assert output == [
        {
            "type": "reasoning",
            "id": f"rs_{key}",
            "status": "completed",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Let me think."}],
        },
        {
            "type": "message",
            "id": f"msg_{key}",
            "status": "completed",
            "role": "assistant",
            "content": [text],
        },
        head | {"id": f"fc_{key}_0", "call_id": "call_0", "arguments": '{"city": "Bonn"}'},
        head | {"id": f"fc_{key}_1", "call_id": "call_1", "arguments": ""},
    ]
    whole = read_events(number)
    if not has_deltas:
        delta_stream.delete([task_id(number)])
    for index, event in enumerate(whole):
        events = whole[: index + 1] + read_events(number, event["sequence_number"])
        numbers = [each["sequence_number"] for each in events]
        assert numbers == sorted({*numbers})
        assert [each["item"] for each in events if each["type"].endswith("item.done")] == output
        deltas = ["", "", "", ""]
        for each in events:
            if each["type"].endswith(".delta"):
                deltas[each["output_index"]] += each["delta"]
        assert deltas == ["Let me think.", "I ask.", '{"city": "Bonn"}', ""]
        assert events[-1]["response"]["output"] == output


def test_calls_are_part_of_the_history(api: APIClient) -> None:
    first = created(api)["id"]
    end_with_calls(first)
    results = [
        {"type": "function_call_output", "call_id": "call_0", "output": "12 °C"},
        {
            "type": "function_call_output",
            "call_id": "call_1",
            "output": [{"type": "input_text", "text": "none"}],
        },
    ]
    second = created(api, input=results, previous_response_id=first)["id"]
    by_hand = [{"role": "user", "content": "Hi"}, *api.get(f"{PATH}/{first}").json()["output"]]
    third = created(api, input=[*by_hand, *results])["id"]
    calls = [call(0, '{"city": "Bonn"}'), call(1, "")]
    for number in (second, third):
        assert GenerationTask.objects.get(pk=task_id(number)).request["messages"] == [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "I ask.", "tool_calls": calls},
            {"role": "tool", "content": "12 °C", "tool_call_id": "call_0"},
            {"role": "tool", "content": "none", "tool_call_id": "call_1"},
        ]
    items = api.get(f"{PATH}/{third}/input_items", {"order": "asc"}).json()["data"]
    assert [item["type"] for item in items] == [
        *("message", "message", "function_call", "function_call"),
        *("function_call_output", "function_call_output"),
    ]
    assert items[-1]["output"] == "none"
    orphan = api.post(PATH, BODY | {"input": results[:1]}, format="json")
    assert (orphan.status_code, orphan.json()["error"]["param"]) == (400, "input")


def test_tools_are_described_as_a_task_has_them() -> None:
    parameters = {"type": "object", "properties": {}}
    tool = {"type": "function", "name": "weather", "parameters": parameters, "strict": True}
    body = BODY | {
        "tools": [tool | {"description": None}],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    fields = response_request(body, "local")
    function = {"name": "weather", "parameters": parameters, "strict": True}
    assert fields["tools"] == [{"type": "function", "function": function}]
    assert fields["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert (fields["parallel_tool_calls"], fields["logprobs"]) == (False, True)
    without = response_request(BODY | {"tools": [], "tool_choice": "auto"}, "local")
    assert without.keys().isdisjoint({"tools", "tool_choice", "logprobs"})


def test_failed_and_cancelled_streams_end_with_the_response(api: APIClient) -> None:
    failed, cancelled = created(api)["id"], created(api)["id"]
    failing(ErrorCode.TIMEOUT, text="so far")(GenerationTask.objects.get(pk=task_id(failed)))
    api.post(f"{PATH}/{cancelled}/cancel")
    events = read_events(failed)
    assert text_of(events) == "so far"
    assert events[-2]["item"]["status"] == "incomplete"
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "It went wrong."}
    assert read_events(failed, events[-1]["sequence_number"]) == []
    last = read_events(cancelled)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")


@pytest.mark.parametrize("query", ["stream=yes", "starting_after=1&stream=1", "wait=1"])
def test_unfit_query_is_refused(api: APIClient, query: str) -> None:
    number = created(api)["id"]
    assert api.get(f"{PATH}/{number}?{query}").status_code == 400
    assert api.get(f"{PATH}/{number}?stream=true&starting_after=-1").status_code == 400


@pytest.mark.parametrize(
    ("reason", "event"), [("stop", "response.completed"), ("length", "response.incomplete")]
)
def test_webhook_is_told_in_the_words_of_openai(
    api: APIClient, settings: Any, reason: str, event: str
) -> None:
    settings.WEBHOOK_ALLOWED_HOSTS = ["127.0.0.1"]
    number = created(api, webhook_url="https://127.0.0.1/hook")["id"]
    end(number, "one", reason)
    delivery = WebhookDelivery.objects.get()
    payload = json.loads(delivery.payload)
    assert payload.pop("created_at") > 0
    assert payload == {
        "id": delivery.pk,
        "object": "event",
        "type": event,
        "data": {"id": number},
    }
