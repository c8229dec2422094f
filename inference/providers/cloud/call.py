"""A request as keyword arguments of LiteLLM, none of which lets a task change what that does."""

import json
from functools import cache
from inspect import signature
from typing import Any

from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.providers.base import GenerationRequest
from inference.providers.cloud.library import library
from inference.structured_output import ResponseFormat

_DEFAULT_TIMEOUT_SECONDS = 60.0
# LiteLLM's own limit of silence is a second one, behind ours.
_TIMEOUT_MARGIN_SECONDS = 5.0
# LiteLLM would look for a key in the environment if it got none.
_NO_KEY = "none"

# What LiteLLM translates for each provider.
_TRANSLATED = {
    *("audio", "function_call", "functions", "logit_bias", "logprobs", "modalities"),
    *("parallel_tool_calls", "prediction", "prompt_cache_key", "reasoning_effort"),
    *("safety_identifier", "service_tier", "store", "thinking", "tool_choice", "tools"),
    *("top_logprobs", "user", "verbosity", "web_search_options"),
}
# What makes the request what it is; a task has fields of its own for it.
_OURS = {
    *("messages", "model", "stream", "stream_options", "response_format", "max_retries"),
}
_SAMPLING = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "max_tokens")
_SAMPLING_BESIDE_OPENAIS = ("top_k", "min_p", "repeat_penalty")

# What LiteLLM takes for itself beside the parameters that it lists.
_MORE_OF_LITELLM = ("extra_body", "organization", "callbacks", "http_client")
_PREFIXES_OF_LITELLM = ("_", "litellm_", "mock_", "aws_", "azure_", "vertex_")

# The schemas that OpenAI guarantees with `strict` have these keywords only.
_STRICT_KEYWORDS = {
    *("$defs", "$ref", "additionalProperties", "anyOf", "const", "description", "enum"),
    *("exclusiveMaximum", "exclusiveMinimum", "format", "items", "maxItems", "maximum"),
    *("minItems", "minimum", "multipleOf", "pattern", "properties", "required", "title"),
    *("type",),
}


def timeout_of(model: RegisteredModel) -> float:
    """For how many seconds the provider may be silent, before and within an answer."""
    return float(model.config.get("timeout", _DEFAULT_TIMEOUT_SECONDS))


def arguments(
    model: RegisteredModel, request: GenerationRequest, *, prefix: str, key: str | None
) -> dict[str, Any]:
    """All but the messages and what a task hands to its provider as is.

    `prefix` is LiteLLM's name for the kind of provider, and a slash.
    """
    params = {name: request.params[name] for name in _SAMPLING if name in request.params}
    if request.params["stop_sequences"]:
        params["stop"] = request.params["stop_sequences"]
    if request.response_format is not None:
        params["response_format"] = _response_format(request.response_format)
    return params | {
        "model": prefix + model.config["model_name"],
        "drop_params": bool(model.config.get("drop_params")),
        "stream": True,
        "stream_options": {"include_usage": True},
        # Its gateway to MCP servers, for which a task with tools would need another library.
        "_skip_mcp_handler": True,
        **connection(model, key, timeout_of(model) + _TIMEOUT_MARGIN_SECONDS),
    }


def connection(model: RegisteredModel, key: str | None, timeout: float) -> dict[str, Any]:
    """How the provider is reached, by a call that neither repeats itself nor is kept anywhere."""
    return {
        "api_base": model.config.get("base_url"),
        "api_key": key or _NO_KEY,
        "timeout": timeout,
        "num_retries": 0,
        "max_retries": 0,
        "caching": False,
        "no-log": True,
    }


def sampling_beside_openais(request: GenerationRequest) -> dict[str, Any]:
    """The sampling fields that OpenAI does not have, by our names."""
    given = request.params
    return {name: given[name] for name in _SAMPLING_BESIDE_OPENAIS if name in given}


def split(extra_params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What LiteLLM translates, and what goes into the body of the request as it is."""
    check_not_ours(extra_params)
    translated = {name: value for name, value in extra_params.items() if name in _TRANSLATED}
    return translated, {n: value for n, value in extra_params.items() if n not in _TRANSLATED}


def check_not_ours(extra_params: dict[str, Any]) -> None:
    """Raises InferenceError for what would make another request of this one."""
    if taken := sorted(_OURS & extra_params.keys()):
        raise _refusal(f"extra_params must not have {taken[0]}: leave it out.")


def as_provider_params(params: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments that LiteLLM hands on because it does not know them.

    Raises InferenceError for those that it would take for its own.
    """
    for name in params:
        if name in _names_of_litellm() or name.startswith(_PREFIXES_OF_LITELLM):
            raise _refusal(f"extra_params cannot have {name} with this provider: leave it out.")
    return params


@cache
def _names_of_litellm() -> frozenset[str]:
    litellm = library()
    of_calls = signature(litellm.acompletion).parameters
    return frozenset({*litellm.types.utils.all_litellm_params, *of_calls, *_MORE_OF_LITELLM})


def _refusal(message: str) -> InferenceError:
    return InferenceError(message, ErrorCode.INVALID_REQUEST)


def _response_format(response_format: ResponseFormat) -> dict[str, Any]:
    if "schema" not in response_format:
        return {"type": response_format["type"]}
    schema = json.loads(response_format["schema"])
    described = {"name": response_format["name"], "schema": schema, "strict": _is_strict(schema)}
    return {"type": "json_schema", "json_schema": described}


def _is_strict(schema: Any, *, is_root: bool = True) -> bool:
    """Whether OpenAI takes it with `strict`: it refuses a schema that it could not guarantee."""
    if isinstance(schema, bool) or not schema.keys() <= _STRICT_KEYWORDS:
        return False
    properties = schema.get("properties", {})
    is_object = schema.get("type") == "object"
    if is_root and not is_object:
        return False
    if is_object and (
        schema.get("additionalProperties") is not False
        or set(schema.get("required", ())) != properties.keys()
    ):
        return False
    below = [*properties.values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", ())]
    if "items" in schema:
        below.append(schema["items"])
    return all(_is_strict(part, is_root=False) for part in below)
