"""Requests and responses of /v1 as the API's description shows them."""

from typing import Any

from drf_spectacular.utils import OpenApiExample

_MODEL = "smollm2-135m-instruct"
_CREATED = 1_767_225_600
_USAGE = {
    "prompt_tokens": 34,
    "completion_tokens": 6,
    "total_tokens": 40,
    "prompt_tokens_details": {"cached_tokens": 0},
}
_HEAD = {"created": _CREATED, "model": _MODEL, "system_fingerprint": None}

CHAT_REQUEST = {
    "model": _MODEL,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_completion_tokens": 40,
}
_MESSAGE = {"role": "assistant", "content": "It is Paris.", "refusal": None}
CHAT = {
    "id": "chatcmpl-3f0c7d9a52e14b0f8a6d1c2b3e4f5a6b",
    "object": "chat.completion",
    **_HEAD,
    "choices": [{"index": 0, "message": _MESSAGE, "logprobs": None, "finish_reason": "stop"}],
    "usage": _USAGE,
}
COMPLETION_REQUEST = {"model": _MODEL, "prompt": "The capital of France is", "max_tokens": 5}
COMPLETION = {
    "id": "cmpl-3f0c7d9a52e14b0f8a6d1c2b3e4f5a6b",
    "object": "text_completion",
    **_HEAD,
    "choices": [{"text": " Paris.", "index": 0, "logprobs": None, "finish_reason": "length"}],
    "usage": _USAGE,
}
MESSAGE_REQUEST = {
    "model": _MODEL,
    "max_tokens": 40,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
MESSAGE = {
    "id": "msg_3f0c7d9a52e14b0f8a6d1c2b3e4f5a6b",
    "type": "message",
    "role": "assistant",
    "model": _MODEL,
    "content": [{"type": "text", "text": "It is Paris."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 34,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 6,
    },
}
COUNT = {"input_tokens": 34}
RERANK_REQUEST = {
    "model": "all-minilm-l6-v2",
    "query": "Who sleeps?",
    "documents": ["Interest rates rise.", "The cat sleeps."],
    "top_n": 1,
}
RANKED = {
    "object": "list",
    "results": [
        {"index": 1, "relevance_score": 0.61, "document": {"text": "The cat sleeps."}},
    ],
    "model": "all-minilm-l6-v2",
    "usage": {"prompt_tokens": 17, "total_tokens": 17},
}
RESPONSE_REQUEST = {
    "model": _MODEL,
    "instructions": "Be brief.",
    "input": "What is the capital of France?",
    "background": True,
}
RESPONSE = {
    "id": "resp_3f0c7d9a52e14b0f8a6d1c2b3e4f5a6b",
    "object": "response",
    "created_at": _CREATED,
    "completed_at": None,
    "status": "queued",
    "background": True,
    "store": True,
    "model": _MODEL,
    "output": [],
    "error": None,
    "incomplete_details": None,
    "usage": None,
    "instructions": "Be brief.",
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
    "metadata": {},
    "service_tier": "default",
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
}
EMBEDDING_REQUEST = {"model": "all-minilm-l6-v2", "input": ["a cat", "a dog"]}
EMBEDDINGS = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0327, -0.0018]}],
    "model": "all-minilm-l6-v2",
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
    "truncated": [],
}
_MODEL_OBJECT = {
    "id": _MODEL,
    "object": "model",
    "created": _CREATED,
    "owned_by": "local",
    "context_window": 2048,
    "max_model_len": 2048,
    "max_output_tokens": None,
    "capabilities": {
        "completion": True,
        "embeddings": False,
        "streaming": True,
        "structured_output": True,
        "tools": True,
        "vision": False,
    },
}


def of(request: Any, response: Any) -> list[OpenApiExample]:
    """The examples of one operation."""
    return [OpenApiExample("Request", request, request_only=True), _response(response)]


def _response(value: Any) -> OpenApiExample:
    return OpenApiExample(
        "Response", value, response_only=True, media_type="application/json", status_codes=["200"]
    )


MODEL = _response(_MODEL_OBJECT)
MODELS = _response({"object": "list", "data": [_MODEL_OBJECT]})
