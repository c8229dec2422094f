"""The requests of n8n's OpenAI nodes, as its sources make them; n8n itself is not installed."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import API_KEY, CHAT_MODEL, ECHO

TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
        "$schema": "http://json-schema.org/draft-07/schema#",
    },
}


@pytest.fixture
def n8n(base_url: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=base_url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


def post(n8n: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    response = n8n.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_models_for_the_menu(n8n: httpx.Client) -> None:
    """Also how a credential is tested."""
    assert ECHO in [model["id"] for model in n8n.get("/models").json()["data"]]


def test_message_of_version_1(n8n: httpx.Client) -> None:
    asked = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "Name a colour."}]}
    options = {"max_completion_tokens": 40, "n": 1, "temperature": 1, "top_p": 1}
    options |= {"frequency_penalty": 0, "presence_penalty": 0}
    system = {"role": "system", "content": "You are a helpful assistant designed to output JSON."}
    answer = post(
        n8n,
        "/chat/completions",
        asked
        | options
        | {"messages": [system, *asked["messages"]], "response_format": {"type": "json_object"}},
    )
    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_tools_of_version_1(n8n: httpx.Client) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    body = {"model": CHAT_MODEL, "messages": messages, "max_completion_tokens": 64}
    body |= {"tools": [{"type": "function", "function": TOOL}]}
    first = post(n8n, "/chat/completions", body | {"tool_choice": "required"})
    message = first["choices"][0]["message"]
    messages.append(message)
    messages += [
        {"tool_call_id": call["id"], "role": "tool", "content": "It rains."}
        for call in message["tool_calls"]
    ]
    assert post(n8n, "/chat/completions", body)["choices"]


def test_tools_of_version_2(n8n: httpx.Client) -> None:
    text = {"type": "input_text", "text": "What is the weather in Paris?"}
    body: dict[str, Any] = {
        "model": CHAT_MODEL,
        "input": [{"role": "user", "content": [text]}],
        "parallel_tool_calls": True,
        "store": True,
        "max_output_tokens": 64,
        "tools": [{"type": "function", "strict": False, **TOOL}],
        "background": False,
        "truncation": "disabled",
    }
    first = post(n8n, "/responses", body | {"tool_choice": "required"})
    calls = [item for item in first["output"] if item["type"] in ("function_call", "reasoning")]
    body["input"] += calls
    for call in calls:
        if call["type"] == "function_call":
            output = {"type": "function_call_output", "call_id": call["call_id"]}
            body["input"].append(output | {"output": json.dumps({"weather": "rain"})})
    assert post(n8n, "/responses", body)["status"] in ("completed", "incomplete")


def test_background_response_is_polled(n8n: httpx.Client) -> None:
    text = [{"type": "input_text", "text": "One two"}]
    schema = {"type": "json_schema", "name": "age", "schema": {"type": "object"}}
    body = {
        "model": CHAT_MODEL,
        "input": [{"role": "user", "content": text}, {"role": "assistant", "content": text}],
        "store": True,
        "background": True,
        "metadata": {"of": "n8n"},
        "text": {"format": schema},
        "max_output_tokens": 30,
    }
    response = post(n8n, "/responses", body)
    for _ in range(600):
        if response["status"] not in ("queued", "in_progress"):
            break
        time.sleep(0.05)
        response = n8n.get(f"/responses/{response['id']}").json()
    assert response["status"] in ("completed", "incomplete")
    assert response["error"] is None
