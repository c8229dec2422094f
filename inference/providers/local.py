"""GGUF models on this machine: what a task asks for becomes a request of the engine."""

from typing import Any

from conversations.context import fit
from conversations.models import ChatMessage
from inference import structured_output
from inference.engine.chat_template import ChatTemplate
from inference.engine.errors import (
    ChatTemplateError,
    ConstraintError,
    EngineError,
    InvalidRequestError,
    PromptTooLongError,
)
from inference.engine.gbnf import compile_grammar
from inference.engine.sequence import SamplingParams, Sequence
from inference.errors import ErrorCode, InferenceError
from inference.loading.loaded_engines import LoadedEngine
from inference.models import Queue
from inference.providers.base import GenerationRequest, Progress, Provider

_SAMPLING = SamplingParams.__dataclass_fields__.keys() - {
    *("stop", "constraint", "constraint_may_explode")
}

_RAW = ChatTemplate(None)

# The first that fits counts.
_CODES = (
    (PromptTooLongError, ErrorCode.CONTEXT_LENGTH_EXCEEDED),
    (InvalidRequestError, ErrorCode.INVALID_REQUEST),
    (ChatTemplateError, ErrorCode.INVALID_REQUEST),
    (ConstraintError, ErrorCode.STRUCTURED_OUTPUT_INVALID),
    (EngineError, ErrorCode.PROVIDER_ERROR),
)


class LocalProvider(Provider):
    """Models that a GPU session runs: their text comes from its engine's steps, many at once."""

    queue = Queue.GPU
    supports_structured_output = True
    # llama.cpp's own defaults.
    default_params = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05}


def new_sequence(loaded: LoadedEngine, request: GenerationRequest, progress: Progress) -> Sequence:
    """A request as a sequence for the engine of its model. Raises InferenceError.

    May take seconds: it can be called while another thread runs the engine's steps.
    """
    try:
        tokens, num_dropped = _prompt_tokens(loaded, request)
        if num_dropped:
            progress.extra["truncated_messages"] = num_dropped
        progress.prompt_tokens = len(tokens)
        owner = "" if loaded.model.shares_prefixes else request.owner
        params = _sampling_params(request)
        return loaded.engine.new_sequence(request.request_id, tokens, params, owner)
    except EngineError as error:
        raise inference_error(error) from error


def inference_error(error: EngineError) -> InferenceError:
    """The task's failure that an error of the engine is."""
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    return InferenceError(str(error), code)


def _prompt_tokens(loaded: LoadedEngine, request: GenerationRequest) -> tuple[list[int], int]:
    """The prompt's tokens, and how many messages were dropped to make it fit."""
    runner = loaded.runner
    template = _RAW if request.is_raw else runner.chat_template

    # By how many messages are left, the oldest ones being dropped: each prompt is made once.
    prompts: dict[int, list[int]] = {}

    def tokenize(messages: list[ChatMessage]) -> list[int]:
        if len(messages) not in prompts:
            prompts[len(messages)] = runner.tokenize(template.render(messages))
        return prompts[len(messages)]

    def num_tokens(messages: list[ChatMessage]) -> int:
        try:
            return len(tokenize(messages))
        except PromptTooLongError as error:
            return error.num_prompt_tokens

    messages = request.messages
    if not request.is_raw:  # else the names of control tokens are the client's own template
        messages = [
            {"role": message["role"], "content": runner.as_text(message["content"])}
            for message in messages
        ]
    num_dropped = 0
    if request.context_overflow == "truncate":
        window = runner.n_ctx_per_seq
        messages, num_dropped = fit(messages, window, request.answer_room(window), num_tokens)
    return tokenize(messages), num_dropped


def _sampling_params(request: GenerationRequest) -> SamplingParams:
    params = request.params
    known: dict[str, Any] = {name: params[name] for name in _SAMPLING & params.keys()}
    constraint, may_explode = None, False
    if request.response_format is not None:
        constraint = structured_output.constraint_for(request.response_format)
        may_explode = request.response_format["type"] == "lark"
    elif "grammar" in params:
        constraint, may_explode = compile_grammar(params["grammar"]), True
    return SamplingParams(
        **known,
        stop=tuple(params["stop_sequences"]),
        constraint=constraint,
        constraint_may_explode=may_explode,
    )
