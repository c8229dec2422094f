"""How many tokens the prompt of a task is, without its model in memory."""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from inference.embeddings.messages import Answer, EmbeddingRequest, Shape
from inference.engine.errors import ModelLoadError
from inference.engine.runner import LoadParams
from inference.errors import ErrorCode, InferenceError
from inference.loading import weights
from inference.models import RegisteredModel
from inference.providers import echo, local
from inference.providers.base import GenerationRequest
from inference.providers.registry import provider_for

if TYPE_CHECKING:
    from inference.engine.llama_runner import LlamaRunner

# A vocabulary takes some tens of megabytes.
_MAX_VOCABULARIES = 4


def count(model: RegisteredModel, asked: EmbeddingRequest) -> Answer:
    """Exact for local models and `echo`, about for those of others. Raises InferenceError.

    For Shape.PREFLIGHT, of what is left once the oldest turns are dropped that do not fit.
    """
    fields: dict[str, Any] = asked.prompt or {}
    is_preflight = asked.shape == Shape.PREFLIGHT
    request = GenerationRequest(
        request_id="",
        messages=fields["messages"],
        params=fields["params"],
        is_raw=fields.get("is_raw", False),
        response_format=fields.get("response_format"),
        tools=fields.get("tools"),
        context_overflow=fields["context_overflow"] if is_preflight else "error",
        extra_params=fields.get("extra_params") or {},
    )
    is_estimated, num_dropped, cost = False, 0, None
    match model.provider:
        case RegisteredModel.Provider.LOCAL:
            num_tokens, num_dropped = _count_local(model, request)
        case RegisteredModel.Provider.ECHO:
            num_tokens = echo.count_tokens(request.messages)
        case _:
            # LiteLLM takes seconds to import.
            from inference.providers.cloud import tokens

            is_estimated, messages = True, request.messages
            if is_preflight:
                messages, num_dropped = tokens.fit(model, request)
                cost = provider_for(model).cost_at_most(request)
            num_tokens = tokens.count_messages(messages)
            if request.tools is not None:
                num_tokens += tokens.count(request.tools["tools"])
    if not is_preflight:
        return Answer(json.dumps({"input_tokens": num_tokens}))
    told = {"prompt_tokens": num_tokens, "is_estimated": is_estimated}
    return Answer(json.dumps({**told, "truncated_messages": num_dropped, "cost_nano_usd": cost}))


def _count_local(model: RegisteredModel, request: GenerationRequest) -> tuple[int, int]:
    try:
        path = weights.resolve_file(model.config["model_path"])
        runner = _vocabulary(path, path.stat().st_mtime_ns)
        return local.count_tokens(runner, request, model.context_window or settings.N_CTX)
    except (ModelLoadError, ValueError, OSError) as error:
        raise InferenceError(str(error), ErrorCode.MODEL_LOAD_FAILED) from error


@lru_cache(_MAX_VOCABULARIES)
def _vocabulary(path: Path, _modified: int) -> "LlamaRunner":
    """The model without its weights: read in tenths of a second."""
    # llama_cpp takes a second to import.
    from inference.engine.llama_runner import LlamaRunner

    return LlamaRunner(LoadParams(path=path, is_vocabulary_only=True))
