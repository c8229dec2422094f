"""Tools, content parts, tool results, logprobs: what a submission may have, and what not."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from conversations.models import Conversation
from inference.models import GenerationTask, RegisteredModel
from inference.tools import offered
from inference.webhooks import urls as webhook_urls

NewTask = Callable[..., GenerationTask]
TASKS = "/api/v1/tasks"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: dict[str, Any] = {"name": "find", "description": "Finds.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "Bonn"}
USER = {"role": "user", "content": "Where?"}
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()


@pytest.fixture(autouse=True)
def models(db: None, smollm2_file: Any) -> None:
    RegisteredModel.objects.create(name="cloud", provider="openai", config={"model_name": "x"})
    RegisteredModel.objects.create(name="claude", provider="anthropic", config={"model_name": "x"})
    RegisteredModel.objects.create(
        name="smol", provider="local", config={"model_path": smollm2_file.name}
    )


def submitted(api: APIClient, **fields: Any) -> GenerationTask:
    fields = {"prompt": "Hi"} | fields if "messages" not in fields else fields
    response = api.post(TASKS, {"model": "cloud"} | fields, format="json")
    assert response.status_code == 201, response.json()
    return GenerationTask.objects.get(pk=response.json()["task_id"])


def refusal(api: APIClient, **fields: Any) -> str:
    fields = {"prompt": "Hi"} | fields if "messages" not in fields else fields
    response = api.post(TASKS, {"model": "cloud"} | fields, format="json")
    assert response.status_code == 400, response.json()
    return str(response.json()["message"])


@pytest.mark.parametrize("model", ["cloud", "smol"])
@pytest.mark.parametrize(
    ("choice", "kept", "name"),
    [
        (None, "auto", None),
        ("none", "none", None),
        ("required", "required", None),
        ({"type": "function", "function": {"name": "find"}}, "required", "find"),
    ],
)
def test_tools_are_kept_with_the_task(
    api: APIClient, model: str, choice: Any, kept: str, name: str | None
) -> None:
    task = submitted(api, model=model, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    found = offered(task.request["tools"])
    assert (found.choice, found.name, found.is_parallel) == (kept, name, False)
    [tool] = found.tools
    assert (tool.name, tool.parameters, tool.is_strict) == ("find", PARAMETERS, False)


def function(**changes: Any) -> dict[str, Any]:
    return {"type": "function", "function": FUNCTION | changes}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": []}, "tools: #: Give a list of 1 to 128 tools"),
        ({"tools": {}}, "tools: #: "),
        ({"tools": [7]}, "tools: #/0: A tool is"),
        ({"tools": [TOOL, {"type": "mcp"}]}, "tools: #/1: A tool is"),
        ({"tools": [{"type": "function"}]}, "tools: #/0/function: "),
        ({"tools": [function(name="a b")]}, "tools: #/0/function/name: "),
        ({"tools": [function(name="find\n")]}, "tools: #/0/function/name: "),
        ({"tools": [TOOL, TOOL]}, "tools: #/1/function/name: find is there twice"),
        ({"tools": [function(strict="yes")]}, "tools: #/0/function/strict: "),
        ({"tools": [function(parameters=[])]}, "tools: #/0/function/parameters: "),
        ({"tools": [function(parameters={"type": "string"})]}, "#/0/function/parameters: "),
        (
            {"tools": [function(parameters={"properties": {"a": {"type": "strin"}}})]},
            "tools: #/0/function/parameters/properties/a",
        ),
        ({"tools": [TOOL | {"extra": 1}]}, "tools: #/0: Unknown field extra"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice: Give none, auto"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice: It names none of the tools",
        ),
        ({"tool_choice": "auto"}, "tool_choice: "),
        ({"parallel_tool_calls": True}, "parallel_tool_calls: "),
        ({"tools": [TOOL], "extra_params": {"tools": [TOOL]}}, "extra_params: tools: "),
        ({"tools": [TOOL], "model": "echo"}, "tools: The echo provider calls no tools"),
        ({"tools": [TOOL], "fallback_models": ["echo"]}, "fallback_models: echo cannot run"),
        (
            {"tools": [TOOL], "model": "smol", "response_format": {"type": "json_object"}},
            "tools: Local models either",
        ),
        ({"top_logprobs": 3}, "top_logprobs: Ask for logprobs too"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: "),
        ({"logprobs": True, "model": "claude"}, "logprobs: claude is asked through anthropic"),
        ({"logit_bias": {"7": 1}, "model": "echo"}, "logit_bias: "),
        ({"logit_bias": {"7": 101}}, "logit_bias.7: "),
        ({"logit_bias": {"-7": 1}}, "logit_bias: Its names are"),
        ({"logit_bias": {"seven": 1}}, "logit_bias: Its names are"),
    ],
)
def test_what_cannot_be_done_is_refused(
    api: APIClient, echo: RegisteredModel, fields: dict[str, Any], message: str
) -> None:
    assert message in refusal(api, **fields)


@pytest.mark.parametrize("forced", [{"strict": True}, {}])
def test_schema_that_cannot_be_kept_is_refused_where_it_has_to_be(
    api: APIClient, forced: dict[str, bool]
) -> None:
    broken = {"type": "object", "properties": {"a": {"allOf": [{"enum": [1]}, {"enum": [2]}]}}}
    broken["required"] = ["a"]
    tools = [function(parameters=broken, **forced)]
    choice = None if forced else "required"
    message = refusal(api, model="smol", tools=tools, tool_choice=choice)
    assert message.startswith("tools: #/0/function/parameters")
    submitted(api, model="smol", tools=[function(parameters=broken)])


def test_calls_and_results_are_messages(api: APIClient) -> None:
    reasoned = CALLED | {"reasoning_content": "Hm."}
    task = submitted(api, messages=[USER, reasoned, RESULT])
    assert task.messages() == [USER, CALLED | {"content": ""}, RESULT]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, RESULT], "messages: #/1/tool_call_id: No tool call before it"),
        ([RESULT, CALLED], "messages: #/0/tool_call_id: "),
        ([USER | {"tool_calls": [CALL]}], "messages.0.tool_calls: Only an assistant"),
        ([USER | {"tool_call_id": "call_1"}], "messages.0.tool_call_id: "),
        ([{"role": "tool", "content": "x"}], "messages.0.tool_call_id: "),
        ([{"role": "assistant", "content": None}], "messages.0.content: "),
        ([CALLED | {"tool_calls": [{"id": "x"}]}], "messages.0.tool_calls.0.function: "),
        ([USER | {"content": []}], "messages.0.content: "),
        ([USER | {"content": [{"type": "audio"}]}], "messages.0.content.0.type: "),
        ([USER | {"content": [{"type": "text"}]}], "messages.0.content.0.text: "),
        (
            [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}],
            "Only",
        ),
    ],
)
def test_messages_that_do_not_fit_together_are_refused(
    api: APIClient, messages: list[Any], message: str
) -> None:
    assert message in refusal(api, messages=messages)


def image(url: str) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


def test_parts_of_text_are_one_text(api: APIClient) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    task = submitted(api, model="smol", messages=[{"role": "user", "content": parts}])
    assert task.messages() == [{"role": "user", "content": "one two"}]


def test_image_goes_to_a_model_of_a_cloud(api: APIClient) -> None:
    assert submitted(api, messages=image(PNG)).messages() == image(PNG)


@pytest.mark.parametrize("model", ["smol", "echo"])
def test_image_is_refused_where_nobody_sees_it(
    api: APIClient, echo: RegisteredModel, model: str
) -> None:
    message = refusal(api, model=model, messages=image(PNG))
    assert message.startswith("messages: #/0/content/1/image_url/url: ")
    assert "takes no images" in message


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64,?", "is not Base64"),
        ("data:text/html;base64,AAAA", "PNG, JPEG, GIF or WebP"),
        ("data:image/png;base64," + "A" * 7_000_004, "larger than"),
        ("http://example.com/a.png", "https"),
        ("file:///etc/passwd", "https"),
        ("https://127.0.0.1/a.png", "127.0.0.1"),
        ("https://169.254.169.254/latest", "169.254.169.254"),
    ],
)
def test_image_of_another_place_is_refused(api: APIClient, url: str, message: str) -> None:
    assert message in refusal(api, messages=image(url))


def test_image_may_have_a_public_address(api: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_urls, "_refusal", lambda host: None)
    url = "https://example.com/cat.png"
    assert submitted(api, messages=image(url)).messages() == image(url)


def test_address_is_refused_where_it_would_be_fetched_here(api: APIClient) -> None:
    RegisteredModel.objects.create(name="any", provider="litellm", config={"model_name": "x/y"})
    url = "https://example.com/cat.png"
    assert "as a data URL" in refusal(api, model="any", messages=image(url))


def test_too_many_images_are_refused(api: APIClient) -> None:
    assert "at most 20 images" in refusal(api, messages=image(PNG) * 21)


def test_conversation_goes_on_with_the_results_of_its_tools(api: APIClient) -> None:
    conversation = Conversation.objects.create(owner="local")
    fields = {"model": "cloud", "conversation_id": conversation.pk}
    assert api.post(TASKS, fields, format="json").status_code == 400
    for message in (USER, CALLED, RESULT):
        url = f"/api/v1/conversations/{conversation.pk}/messages"
        response = api.post(url, message, format="json")
        assert response.status_code == 201, response.json()
    assert response.json()["tool_call_id"] == "call_1"
    task = api.post(TASKS, fields, format="json").json()
    messages = GenerationTask.objects.get(pk=task["task_id"]).messages()
    assert messages == [USER, CALLED | {"content": ""}, RESULT]


def test_call_that_no_tool_has_answered_is_left_out_of_the_next_turn() -> None:
    conversation = Conversation.objects.create(owner="local")
    for message in (USER, CALLED, USER, CALLED | {"content": "Let me see."}):
        conversation.append(message | {"content": message["content"] or ""})  # type: ignore[arg-type]
    said = {"role": "assistant", "content": "Let me see."}
    assert conversation.context("So?") == [USER, USER, said, {"role": "user", "content": "So?"}]


def test_conversation_keeps_no_images(api: APIClient) -> None:
    conversation = Conversation.objects.create(owner="local")
    url = f"/api/v1/conversations/{conversation.pk}/messages"
    response = api.post(url, image(PNG)[0], format="json")
    assert (response.status_code, "content" in response.json()["details"]) == (400, True)
