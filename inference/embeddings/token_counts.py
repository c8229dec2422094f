"""How many tokens the prompt of a task is, without its model in memory."""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.embeddings.messages import Answer, EmbeddingRequest
from inference.engine.errors import ModelLoadError
from inference.engine.runner import LoadParams
from inference.errors import ErrorCode, InferenceError
from inference.loading import weights
from inference.models import RegisteredModel
from inference.providers import echo, local
from inference.providers.base import GenerationRequest

if TYPE_CHECKING:
    from inference.engine.llama_runner import LlamaRunner

# A vocabulary takes some tens of megabytes.
_MAX_VOCABULARIES = 4


def count(model: RegisteredModel, asked: EmbeddingRequest) -> Answer:
    """Exact for local models and `echo`, about for those of others. Raises InferenceError."""
    fields: dict[str, Any] = asked.prompt or {}
    request = GenerationRequest(
        request_id="",
        messages=fields["messages"],
        params=fields["params"],
        response_format=fields.get("response_format"),
        tools=fields.get("tools"),
        context_overflow="error",
    )
    match model.provider:
        case RegisteredModel.Provider.LOCAL:
            num_tokens = _count_local(model, request)
        case RegisteredModel.Provider.ECHO:
            num_tokens = echo.count_tokens(request.messages)
        case _:
            # LiteLLM takes seconds to import.
            from inference.providers.cloud import tokens

            num_tokens = tokens.count_messages(request.messages)
            if request.tools is not None:
                num_tokens += tokens.count(request.tools["tools"])
    return Answer(json.dumps({"input_tokens": num_tokens}))


def _count_local(model: RegisteredModel, request: GenerationRequest) -> int:
    try:
        path = weights.resolve_file(model.config["model_path"])
        return local.count_tokens(_vocabulary(path, path.stat().st_mtime_ns), request)
    except (ModelLoadError, ValueError, OSError) as error:
        raise InferenceError(str(error), ErrorCode.MODEL_LOAD_FAILED) from error


@lru_cache(_MAX_VOCABULARIES)
def _vocabulary(path: Path, _modified: int) -> "LlamaRunner":
    """The model without its weights: read in tenths of a second."""
    # llama_cpp takes a second to import.
    from inference.engine.llama_runner import LlamaRunner

    return LlamaRunner(LoadParams(path=path, is_vocabulary_only=True))
