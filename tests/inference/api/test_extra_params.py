"""What a task may hand to its provider as is, and what it may not."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.exceptions import ValidationError
from rest_framework.test import APIClient

from inference.api import extra_params
from inference.api.extra_params import MAX_BYTES, MAX_DEPTH
from inference.models import RegisteredModel
from inference.providers.cloud.call import KNOWN_EXTRA_PARAMS
from tests.inference.api.test_tasks import assert_error

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Today's weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "timeout": {"type": "number"},
                "model": {"$ref": "#/$defs/api_version"},
                "headers": {"type": "object", "properties": {"api_key": {"type": "string"}}},
                "properties": {"type": "object", "properties": {"base_url": {"type": "string"}}},
            },
            "patternProperties": {"api_base": {"type": "string"}},
            "$defs": {"api_version": {"type": "string"}},
            "required": ["city", "api_key"],
        },
    },
}


def refusal(params: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        extra_params.check(params)
    detail: Any = caught.value.detail
    [message] = detail["extra_params"]
    return str(message)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": False},
        {"functions": [WEATHER["function"]]},
        {"logit_bias": {"50256": -100}, "logprobs": True, "top_logprobs": 3},
        {"reasoning_effort": "low", "thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"user": "someone", "service_tier": "flex", "verbosity": "low", "store": False},
        {"metadata": {"team": "blue"}, "safety_identifier": "x", "prompt_cache_key": "k"},
        {"prediction": {"type": "content", "content": "x"}, "modalities": ["text"]},
        {"guided_json": {"type": "object", "properties": {"api_key": {"type": "string"}}}},
        {"mirostat": 2, "typical_p": 0.9, "top_a": 0, "use_beam_search": True},
        {"chat_template_kwargs": {"enable_thinking": False, "timeout": 3, "n": 2}},
        {"web_search_options": {"user_location": {"type": "approximate", "organization": "x"}}},
        {"tools": [{"type": "mcp", "server_label": "x", "headers": {"X-Trace": "1"}}]},
    ],
)
def test_parameters_of_the_provider_are_let_through(params: dict[str, Any]) -> None:
    extra_params.check(params)


@pytest.mark.parametrize(
    "name",
    [
        *("api_base", "base_url", "api_key", "api_version", "api_type", "custom_llm_provider"),
        *("API_BASE", "Api-Base", "apiBase", "baseURL", "base-url", "apiKey", "X-API-Key"),
        *("aws_access_key_id", "aws_bedrock_runtime_endpoint", "azure_ad_token", "azure"),
        *("vertex_credentials", "vertex-project", "extra_headers", "default_headers"),
        *("litellm_credential_name", "litellm_params", "s3_endpoint_url", "langsmith_base_url"),
        *("azure_ad_token_provider", "APIKEY", "endpoint_url"),
    ],
)
@pytest.mark.parametrize(
    ("path", "wrap"),
    [
        ("{}", lambda name: {name: "x"}),
        ("thinking.{}", lambda name: {"thinking": {name: "x"}}),
        ("plugins.0.more.1.{}", lambda name: {"plugins": [{"more": [1, {name: None}]}]}),
        ("tools.0.function.{}", lambda name: {"tools": [{"function": {name: "x"}}]}),
        ("tools.0.properties.a.{}", lambda name: {"tools": [{"properties": {"a": {name: 1}}}]}),
        ("thinking.properties.{}", lambda name: {"thinking": {"properties": {name: 1}}}),
        ("properties.{}", lambda name: {"properties": {name: 1}}),
    ],
)
def test_key_that_redirects_is_refused_at_any_depth(name: str, path: str, wrap: Any) -> None:
    message = refusal(wrap(name))
    assert message.startswith(f"{path.format(name)}: no task may say where")


@pytest.mark.parametrize(
    "name",
    [
        *("headers", "client", "http_client", "organization", "proxy", "proxies", "ssl_verify"),
        *("extra_body", "extra_query", "default_query", "num_retries", "max_retries"),
        *("model_list", "stream_options", "mock_response", "mock_tool_calls", "n", "cache"),
        *("callbacks", "success_callback", "logger_fn", "caching", "drop_params", "Max-Retries"),
        *("allowed_openai_params", "additional_drop_params", "proxy_server_request", "no-log"),
        *("request_timeout", "stream_timeout", "deployment_id", "shared_session", "_private"),
        *("input_cost_per_token", "langfuse_host", "maxRetries", "valkey_password"),
    ],
)
def test_key_of_the_client_is_refused_at_the_top_alone(name: str) -> None:
    assert refusal({name: 1}).startswith(f"{name}: it is not for the provider but for the client")
    extra_params.check({"tools": [{"function": {name: 1}}]})


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("temperature", "temperature"), ("top_k", "top_k"), ("seed", "seed")),
        *(("max_tokens", "max_tokens"), ("max_completion_tokens", "max_tokens")),
        *(("stop", "stop_sequences"), ("repetition_penalty", "repeat_penalty")),
        *(("response_format", "response_format"), ("messages", "messages"), ("model", "model")),
        *(("fallbacks", "fallback_models"), ("timeout", "timeout_seconds"), ("Stream", "stream")),
    ],
)
def test_what_is_a_field_of_the_task_is_refused_with_its_name(name: str, field: str) -> None:
    assert refusal({name: 1}) == f"{name}: use the task's field {field} for it."
    extra_params.check({"tools": [{"function": {name: 1}}]})


def nested(depth: int) -> dict[str, Any]:
    value: Any = 1
    for level in range(depth - 1):
        value = [value] if level % 2 else {"a": value}
    return {"a": value}


def test_depth_is_limited() -> None:
    extra_params.check(nested(MAX_DEPTH))
    assert refusal(nested(MAX_DEPTH + 1)) == "It is nested more than 32 levels deep."
    assert "nested" in refusal(nested(400))


def test_size_is_limited() -> None:
    room = MAX_BYTES - len(json.dumps({"a": ""}))
    extra_params.check({"a": room * "x"})
    assert refusal({"a": (room + 1) * "x"}) == "It is larger than 262144 bytes: hand over less."


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"a": "b\0c"}, "NUL"),
        ({"a\0": 1}, "NUL"),
        ({"a": "\ud800"}, "UTF-8"),
        ({"a": float("inf")}, "JSON"),
        ({"a": [float("nan")]}, "JSON"),
    ],
)
def test_what_a_database_cannot_keep_is_refused(params: dict[str, Any], reason: str) -> None:
    assert reason in refusal(params)


def test_long_path_is_shortened_in_the_message() -> None:
    message = refusal({5000 * "a": {"api_key": 1}})
    assert len(message) < 400
    assert ".api_key: " in message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=15,
)


@given(before=json_values, after=json_values, names=st.lists(st.sampled_from("abcde"), max_size=8))
def test_key_is_found_wherever_it_is(before: Any, after: Any, names: list[str]) -> None:
    value: Any = {"x": before, "api_base": "http://127.0.0.1", "y": after}
    for name in names:
        value = [before, {name: value}]
    try:
        extra_params.check({"options": value})
    except ValidationError as error:
        assert "extra_params" in error.detail  # noqa: PT017
    else:
        raise AssertionError("It was let through.")


def test_submission_is_refused_by_the_path(api: APIClient, echo: RegisteredModel) -> None:
    body = {"model": "echo", "prompt": "x", "extra_params": {"a": [{"api_base": "http://evil"}]}}
    response = api.post("/api/v1/tasks", body, format="json")
    assert_error(response, 400, "validation_error", "extra_params")
    assert "a.0.api_base: " in response.json()["message"]
    assert "evil" not in response.content.decode()


def test_deeply_nested_submission_is_refused(api: APIClient, echo: RegisteredModel) -> None:
    text = '{"model": "echo", "prompt": "x", "extra_params": {"a": %s}}'
    for depth in (100, 100_000):
        body = text % (depth * "[" + depth * "]")
        response = api.post("/api/v1/tasks", body, content_type="application/json")
        assert_error(response, 400, "validation_error")


def test_cloud_task_keeps_what_it_hands_over(api: APIClient) -> None:
    RegisteredModel.objects.create(
        name="cloud", provider="openai", config={"model_name": "gpt-x"}, max_output_tokens=900
    )
    params = {"tools": [WEATHER], "reasoning_effort": "low"}
    body = {"model": "cloud", "prompt": "x", "extra_params": params}
    response = api.post("/api/v1/tasks", body, format="json")
    assert response.status_code == 201, response.json()


@pytest.mark.parametrize("provider", ["litellm", "anthropic"])
@pytest.mark.parametrize(
    "name",
    [
        *("url", "account_id", "token", "gigachat_access_token", "region", "space_id", "auth"),
        *("scope", "iam_token", "zen_api_key", "jwt", "resource", "anything", "Tools"),
    ],
)
def test_unknown_key_does_not_reach_litellm(api: APIClient, provider: str, name: str) -> None:
    """Whatever a provider takes for an address, an account or a credential."""
    names = {"litellm": "watsonx/granite", "anthropic": "claude"}
    RegisteredModel.objects.create(
        name="cloud", provider=provider, config={"model_name": names[provider]}
    )
    body = {"model": "cloud", "prompt": "x", "extra_params": {"tools": [WEATHER], name: "x"}}
    response = api.post("/api/v1/tasks", body, format="json")
    assert_error(response, 400, "validation_error", "extra_params")
    assert name in response.json()["message"]


def test_unknown_key_goes_into_a_body(api: APIClient) -> None:
    config = {"model_name": "x", "base_url": "http://vllm"}
    RegisteredModel.objects.create(name="cloud", provider="openai_compatible", config=config)
    body = {"model": "cloud", "prompt": "x", "extra_params": {"anything": "x"}}
    assert api.post("/api/v1/tasks", body, format="json").status_code == 201


LITELLMS_OWN = """
import json
from litellm.types.router import GenericLiteLLMParams
from litellm.types.utils import all_litellm_params
print(json.dumps([*all_litellm_params, *GenericLiteLLMParams.model_fields]))
"""


def test_no_address_or_credential_of_litellm_is_let_through() -> None:
    """Also not of a later version: it says itself what it takes."""
    output = subprocess.run(
        [sys.executable, "-c", LITELLMS_OWN],
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        check=True,
    ).stdout
    words = (
        *("api_base", "api_key", "base_url", "credential", "endpoint", "host", "password"),
        *("secret", "api_version", "mock", "header", "litellm_", "retries", "callback"),
    )
    # Limits and prices.
    harmless = {"default_api_key_rpm_limit", "default_api_key_tpm_limit"}
    harmless |= {"regional_endpoint_uplift_multiplier"}
    names = {name for name in json.loads(output) if any(word in name for word in words)}
    assert len(names) > 40
    assert {name for name in names if not is_refused(name)} <= harmless


def test_known_keys_mean_nothing_to_litellm_itself() -> None:
    output = subprocess.run(
        [sys.executable, "-c", LITELLMS_OWN],
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        check=True,
    ).stdout
    own = set(json.loads(output))
    assert len(own) > 100
    assert not own & KNOWN_EXTRA_PARAMS


def is_refused(name: str) -> bool:
    try:
        extra_params.check({name: "x"})
    except ValidationError:
        return True
    return False
