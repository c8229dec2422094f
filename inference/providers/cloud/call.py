"""A request as OpenAI's API takes it, and as LiteLLM does, which no task may set up otherwise."""

import json
from typing import Any

from conversations.models import ChatMessage
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.providers.base import GenerationRequest
from inference.tools import ToolRequest

_DEFAULT_TIMEOUT_SECONDS = 60.0
# The library's own limit of silence is a second one, behind ours.
TIMEOUT_MARGIN_SECONDS = 5.0
# LiteLLM would look for a key in the environment if it got none.
_NO_KEY = "none"

# What LiteLLM translates for each provider.
_TRANSLATED = {
    *("audio", "function_call", "functions", "logit_bias", "logprobs", "modalities"),
    *("parallel_tool_calls", "prediction", "prompt_cache_key", "reasoning_effort"),
    *("safety_identifier", "service_tier", "store", "thinking", "tool_choice", "tools"),
    *("top_logprobs", "user", "verbosity", "web_search_options"),
}
# What other providers know, by names that LiteLLM hands on because it has no use for them. No list
# could name all by which it takes addresses, accounts and credentials out of a request.
_HANDED_ON = {
    *("add_generation_prompt", "allowed_token_ids", "bad_words", "best_of", "cache_control"),
    *("chat_template_kwargs", "citation_options", "container", "context_management"),
    *("continue_final_message", "decoding_method", "documents", "dry_allowed_length", "dry_base"),
    *("dry_multiplier", "dry_sequence_breakers", "early_stopping", "enable_thinking"),
    *("guided_choice", "guided_decoding_backend", "guided_grammar", "guided_json"),
    *("guided_regex", "guided_whitespace_pattern", "ignore_eos", "include_reasoning"),
    *("include_stop_str_in_output", "keep_alive", "length_penalty", "mcp_servers", "min_tokens"),
    *("mirostat", "mirostat_eta", "mirostat_tau", "num_ctx", "output_config", "output_format"),
    *("penalize_newline", "plugins", "prompt_logprobs", "prompt_mode", "random_seed", "reasoning"),
    *("reasoning_format", "repeat_last_n", "return_images", "return_related_questions"),
    *("safe_prompt", "safety_mode", "safety_settings", "search_domain_filter", "search_mode"),
    *("search_parameters", "search_recency_filter", "skip_special_tokens"),
    *("spaces_between_special_tokens", "speed", "stop_token_ids", "structured_outputs", "tfs_z"),
    *("think", "top_a", "transforms", "truncate_prompt_tokens", "typical_p", "use_beam_search"),
    *("xtc_probability", "xtc_threshold"),
}
KNOWN_EXTRA_PARAMS = frozenset(_TRANSLATED | _HANDED_ON)
# What makes the request what it is; a task has fields of its own for it.
_OURS = {
    *("messages", "model", "stream", "stream_options", "response_format", "max_retries"),
}
_SAMPLING = (
    *("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "max_tokens"),
    "logit_bias",
)
_SAMPLING_BESIDE_OPENAIS = ("top_k", "min_p", "repeat_penalty")

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


def body_of(model: RegisteredModel, request: GenerationRequest) -> dict[str, Any]:
    """As OpenAI's API takes it: all but the messages and what a task hands on as is."""
    params = {name: request.params[name] for name in _SAMPLING if name in request.params}
    if request.params["stop_sequences"]:
        params["stop"] = request.params["stop_sequences"]
    if request.response_format is not None:
        asked = request.response_format
        params["response_format"] = {"type": asked["type"]}
        if "schema" in asked:
            schema = json.loads(asked["schema"])
            described = {"name": asked["name"], "schema": schema, "strict": _is_strict(schema)}
            params["response_format"]["json_schema"] = described
    if (num_top := request.params.get("logprobs")) is not None:
        params["logprobs"] = True
        if num_top:
            params["top_logprobs"] = num_top
    if request.tools is not None:
        params |= _tools(request.tools)
    if request.prompt_cache_key and model.provider == RegisteredModel.Provider.OPENAI:
        params["prompt_cache_key"] = request.prompt_cache_key
    return params | {
        "model": model.config["model_name"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def arguments(
    model: RegisteredModel, request: GenerationRequest, *, prefix: str, key: str | None
) -> dict[str, Any]:
    """The same for LiteLLM; `prefix` is its name for the kind of provider, and a slash."""
    return body_of(model, request) | {
        "model": prefix + model.config["model_name"],
        "drop_params": bool(model.config.get("drop_params")),
        # Its gateway to MCP servers, for which a task with tools would need another library.
        "_skip_mcp_handler": True,
        **connection(model, key, timeout_of(model) + TIMEOUT_MARGIN_SECONDS),
    }


def _tools(asked: ToolRequest) -> dict[str, Any]:
    choice: Any = asked["choice"]
    if asked["name"] is not None:
        choice = {"type": "function", "function": {"name": asked["name"]}}
    params = {"tools": json.loads(asked["tools"]), "tool_choice": choice}
    return params if asked["parallel"] else params | {"parallel_tool_calls": False}


def messages_of(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """As providers read them: a message that only calls tools has no content."""
    no_content = {"content": None}
    return [
        {**message, **(no_content if "tool_calls" in message and not message["content"] else {})}
        for message in messages
    ]


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


def known(extra_params: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of LiteLLM. Raises InferenceError for any that may mean more to it."""
    if unknown := sorted(extra_params.keys() - KNOWN_EXTRA_PARAMS):
        raise _refusal(f"extra_params cannot have {unknown[0]} with this provider: leave it out.")
    return extra_params


def _refusal(message: str) -> InferenceError:
    return InferenceError(message, ErrorCode.INVALID_REQUEST)


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
