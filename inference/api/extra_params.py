"""What a task may hand to its provider as is: never where the request goes, nor who pays for it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rest_framework.exceptions import ValidationError

from monitoring.api import storable_json

MAX_DEPTH = 32
MAX_BYTES = 256 * 1024

_MAX_SHOWN_CHARS = 200

# Addresses, credentials and accounts; refused at any depth, since client libraries take whole
# requests out of their parameters, such as those of fallbacks.
_REDIRECTS = re.compile(
    r"(.*_)?(api_?(base|key|version|type)|base_?url|endpoint_?url)"
    r"|(aws|azure|bedrock|gcs|litellm|s3|sagemaker|vertex|vertex_?ai|watsonx)_.*"
    r"|azure|custom_?llm_?provider|(extra|default)_?headers"
)
# Other names that client libraries take for themselves; within a tool they mean something else.
_OF_THE_CLIENT = {
    *("client", "http_client", "shared_session", "ssl_verify", "proxy", "proxies"),
    *("headers", "extra_body", "extra_query", "default_query", "organization", "project"),
    *("deployment_id", "region_name", "tenant_id", "client_id", "client_secret", "model_list"),
    *("model_info", "model_config", "model_alias_map", "base_model", "hf_model_name"),
    *("n", "stream_options", "num_retries", "max_retries", "retry_policy", "retry_strategy"),
    *("context_window_fallbacks", "content_policy_fallbacks", "context_window_fallback_dict"),
    *("request_timeout", "stream_timeout", "force_timeout", "cooldown_time", "max_fallbacks"),
    *("callbacks", "success_callback", "failure_callback", "input_callback", "service_callback"),
    *("logger_fn", "verbose", "no_log", "turn_off_message_logging", "proxy_server_request"),
    *("cache", "caching", "caching_groups", "cache_key", "preset_cache_key", "ttl"),
    *("drop_params", "additional_drop_params", "allowed_openai_params", "guardrails"),
    *("acompletion", "async_call", "text_completion", "complete_response", "stream_response"),
    *("provider_specific_header", "provider_affinity_header", "secret_fields", "max_budget"),
    *("prompt_id", "prompt_variables", "budget_duration", "configurable_clientside_auth_params"),
    *("use_client", "use_litellm_proxy", "use_in_pass_through", "use_chat_completions_api"),
}
_PREFIXES_OF_THE_CLIENT = (
    *("_", "mock_", "input_cost_", "output_cost_", "cache_creation_", "cache_read_"),
    *("anthropic_federation_", "anthropic_identity_", "anthropic_issuer_", "anthropic_keycloak_"),
    *("openai_identity_", "arize_", "langfuse_", "langsmith_", "signoz_"),
)
_ENDINGS_OF_THE_CLIENT = ("_endpoint", "_host", "_organization_id", "_password", "_port", "_url")
# Fields of a task, by the names under which a provider would take them.
_TASK_FIELDS = {
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens")},
    **{name: name for name in ("frequency_penalty", "presence_penalty", "repeat_penalty")},
    **{name: name for name in ("stop_sequences", "response_format", "messages", "model", "stream")},
    "fallbacks": "fallback_models",
    "max_completion_tokens": "max_tokens",
    "repetition_penalty": "repeat_penalty",
    "stop": "stop_sequences",
    "timeout": "timeout_seconds",
}
# Where JSON Schemas are, and their keywords whose members have names that mean nothing to us.
_HOLD_SCHEMAS = {"functions", "guided_json", "json_schema", "structured_outputs", "tools"}
_HOLD_NAMES = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}


@dataclass(frozen=True, slots=True)
class _Key:
    """One key of an object, `path` being the dotted way to it; `is_free`: any name will do."""

    name: str
    path: str
    depth: int
    is_free: bool


def check(extra_params: dict[str, Any]) -> None:
    """Raises ValidationError naming the key that a task may not set, or what else is wrong."""
    try:
        encoded = storable_json.encode(extra_params)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"It cannot be written as JSON in UTF-8: {error}.") from error
    if storable_json.has_nul(encoded):
        raise _refusal("It must not contain NUL characters.")
    if len(encoded) > MAX_BYTES:
        raise _refusal(f"It is larger than {MAX_BYTES} bytes: hand over less.")
    for key in _keys(extra_params):
        if reason := _objection(key):
            path = key.path
            if len(path) > _MAX_SHOWN_CHARS:
                path = f"…{path[-_MAX_SHOWN_CHARS:]}"
            raise _refusal(f"{path}: {reason}")


def _keys(extra_params: dict[str, Any]) -> Iterator[_Key]:
    for name, value in extra_params.items():
        yield _Key(name, name, 1, is_free=False)
        yield from _keys_below(value, name, 1, has_schemas=_snake(name) in _HOLD_SCHEMAS)


def _keys_below(
    value: Any, path: str, depth: int, *, has_schemas: bool, are_free: bool = False
) -> Iterator[_Key]:
    if isinstance(value, dict | list) and depth == MAX_DEPTH:
        raise _refusal(f"It is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _keys_below(item, f"{path}.{index}", depth + 1, has_schemas=has_schemas)
    if isinstance(value, dict):
        for name, member in value.items():
            yield _Key(name, f"{path}.{name}", depth + 1, are_free)
            yield from _keys_below(
                member,
                f"{path}.{name}",
                depth + 1,
                has_schemas=has_schemas,
                are_free=has_schemas and name in _HOLD_NAMES and not are_free,
            )


def _objection(key: _Key) -> str | None:
    """Why a task may not set this; None when it may."""
    # As it is written, and as apiBase is api_base in Python.
    spellings = {_snake(key.name), _snake(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.name))}
    if key.depth == 1:
        for spelling in spellings & _TASK_FIELDS.keys():
            return f"use the task's field {_TASK_FIELDS[spelling]} for it."
    if not key.is_free and any(map(_REDIRECTS.fullmatch, spellings)):
        return (
            "no task may say where its request goes or which key pays for it; the registration "
            "of the model does. Leave it out."
        )
    if key.depth == 1 and any(
        spelling in _OF_THE_CLIENT
        or spelling.startswith(_PREFIXES_OF_THE_CLIENT)
        or spelling.endswith(_ENDINGS_OF_THE_CLIENT)
        for spelling in spellings
    ):
        return "it is not for the provider but for the client, which is not a task's to set up."
    return None


def _snake(name: str) -> str:
    return re.sub(r"[-.\s]", "_", name).lower()


def _refusal(message: str) -> ValidationError:
    return ValidationError({"extra_params": [message]})
