"""GGUF models on this machine: what a task asks for becomes a request of the engine."""

import json
import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conversations.context import fit
from conversations.models import ChatMessage, ToolCall, text_of
from inference import structured_output, tools
from inference.engine import tool_forms
from inference.engine.answer_parser import AnswerParser
from inference.engine.chat_template import Call, CalledFunction, ChatTemplate, Turn
from inference.engine.deltas import TokenLogprob
from inference.engine.errors import (
    ChatTemplateError,
    ConstraintError,
    EngineError,
    InvalidRequestError,
    PromptTooLongError,
)
from inference.engine.gbnf import compile_grammar
from inference.engine.sequence import SamplingParams, Sequence
from inference.engine.tool_forms import Tool, ToolChoice, ToolForm, ToolsOffered
from inference.errors import ErrorCode, InferenceError
from inference.loading import kept_caches
from inference.loading.loaded_engines import LoadedEngine
from inference.models import Provenance, Queue
from inference.providers.base import GenerationRequest, Progress, Provider

if TYPE_CHECKING:
    from inference.engine.llama_runner import LlamaRunner

_SAMPLING = SamplingParams.__dataclass_fields__.keys() - {
    *("stop", "constraint", "constraint_may_explode", "logit_bias")
}

# llama.cpp takes the last number of 32 bits for none.
_NUM_SEEDS = 2**32 - 1

_NO_TOOLS = ToolsOffered(())
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
    supports_tools = True
    # llama.cpp's own defaults.
    default_params = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05}


def new_sequence(
    loaded: LoadedEngine, request: GenerationRequest, progress: Progress
) -> tuple[Sequence, AnswerParser | None]:
    """A request as a sequence for the engine of its model, and the parser of its text.

    No parser where all of it is text. May take seconds: it can be called while another thread runs
    the engine's steps. Raises InferenceError.
    """
    try:
        plan = _Plan(loaded.runner, request)
        tokens, num_dropped = plan.prompt.fit(request, loaded.runner.n_ctx_per_seq)
        if num_dropped:
            progress.extra["truncated_messages"] = num_dropped
        progress.prompt_tokens = len(tokens)
        names = (*_SAMPLING, "stop", "logit_bias")
        used = {name: getattr(plan.params, name) for name in names}
        progress.provenance = Provenance(**loaded.provenance, params=used)
        owner = "" if loaded.model.shares_prefixes else request.owner
        form, thinking = plan.form, plan.thinking
        marks = form.marks if form else ()
        if thinking is not None:
            marks += (thinking.open, thinking.close)
        sequence = loaded.engine.new_sequence(request.request_id, tokens, plan.params, owner, marks)
        if key := request.conversation_id or request.prompt_cache_key:
            sequence.saved = kept_caches.find(loaded, request.owner, key, tokens)
    except EngineError as error:
        raise inference_error(error) from error
    if form is None and thinking is None:
        return sequence, None
    parser = AnswerParser(
        form=form,
        tools={tool.name for tool in plan.offered.callable},
        thinking=thinking,
        is_thinking=plan.prompt.is_thinking,
        is_parallel=plan.offered.is_parallel,
    )
    parser.feed(plan.beginning)
    return sequence, parser


def count_tokens(runner: "LlamaRunner", request: GenerationRequest, window: int) -> tuple[int, int]:
    """Tokens of the prompt, as `new_sequence` makes it, and how many messages it drops for that.

    `window`: that of the loaded model. Raises InferenceError.
    """
    try:
        tokens, num_dropped = _Plan(runner, request).prompt.fit(request, window)
        return len(tokens), num_dropped
    except EngineError as error:
        raise inference_error(error) from error


class _Plan:
    """How a request is asked: its prompt, what it is sampled by, and what its answer may have."""

    def __init__(self, runner: "LlamaRunner", request: GenerationRequest) -> None:
        template = _RAW if request.is_raw else runner.chat_template
        asked = request.tools
        self.offered = _NO_TOOLS if asked is None else tools.offered(asked)
        self.form = template.form if self.offered.callable else None
        self.params = _sampling_params(request, self.offered, template.form)
        is_forced = self.form is not None and self.offered.choice == ToolChoice.REQUIRED
        # Nothing of a constrained answer is reasoning, unless the constraint is of some calls only.
        is_constrained = self.params.constraint is not None and (self.form is None or is_forced)
        self.thinking = None if is_constrained else template.thinking
        self.beginning = template.form.begin if is_forced else ""
        self.prompt = _Prompt(
            runner,
            template,
            self.offered.callable,
            self.beginning,
            may_think=not is_constrained,
        )


def openai_logprobs(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """In OpenAI's shape; `token` may be a part of a character, which only `bytes` shows."""
    return [
        _openai_token(each.token, each.logprob)
        | {"top_logprobs": [_openai_token(*other) for other in each.top]}
        for each in logprobs
    ]


def _openai_token(token: bytes, logprob: float) -> dict[str, Any]:
    text = token.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return {"token": text, "logprob": logprob, "bytes": list(token)}


def inference_error(error: EngineError) -> InferenceError:
    """The task's failure that an error of the engine is."""
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    return InferenceError(str(error), code)


class _Prompt:
    """The prompt of one request, made anew with fewer messages until it fits."""

    def __init__(
        self,
        runner: "LlamaRunner",
        template: ChatTemplate,
        offered: tuple[Tool, ...],
        beginning: str,
        *,
        may_think: bool,
    ) -> None:
        """`beginning` of the answer. Unless it `may_think`, reasoning that is open is ended."""
        self._runner = runner
        self._template = template
        self._tools = tuple(self._as_text(tool) for tool in offered)
        self._beginning = beginning
        self._may_think = may_think
        # By how many messages are left, the oldest ones being dropped: each prompt is made once.
        self._prompts: dict[int, list[int]] = {}
        # Whether the answer begins with reasoning.
        self.is_thinking = False

    def fit(self, request: GenerationRequest, window: int) -> tuple[list[int], int]:
        """The prompt's tokens, and how many messages were dropped to make it fit the window."""
        messages, num_dropped = request.messages, 0
        if request.context_overflow == "truncate":
            room = request.answer_room(window)
            messages, num_dropped = fit(messages, window, room, self._num_tokens)
        return self._tokenize(messages), num_dropped

    def _tokenize(self, messages: list[ChatMessage]) -> list[int]:
        if len(messages) not in self._prompts:
            turns = [self._turn(message) for message in messages]
            text = self._template.render(turns, self._tools)
            tags = self._template.thinking
            self.is_thinking = tags is not None and text.rstrip().endswith(tags.open)
            if tags is not None and self.is_thinking and not self._may_think:
                text, self.is_thinking = f"{text.rstrip()}\n\n{tags.close}\n\n", False
            self._prompts[len(messages)] = self._runner.tokenize(text + self._beginning)
        return self._prompts[len(messages)]

    def _num_tokens(self, messages: list[ChatMessage]) -> int:
        try:
            return len(self._tokenize(messages))
        except PromptTooLongError as error:
            return error.num_prompt_tokens

    def _turn(self, message: ChatMessage) -> Turn:
        turn = Turn(role=message["role"], content=self._as_text(text_of(message)))
        if "tool_call_id" in message:
            turn["tool_call_id"] = message["tool_call_id"]
        if "tool_calls" in message:
            turn["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return turn

    def _call(self, call: ToolCall) -> Call:
        written = call["function"]["arguments"]
        try:
            arguments = json.loads(written) if written else {}
        except (ValueError, RecursionError):
            arguments = written
        arguments = self._as_text(arguments if isinstance(arguments, dict) else written)
        function = CalledFunction(name=call["function"]["name"], arguments=arguments)
        return Call(id=call["id"], type="function", function=function)

    def _as_text(self, value: Any) -> Any:
        """The same with all texts in it as contents."""
        match value:
            case str():
                # Of a raw prompt, the names of control tokens are the client's own template.
                return value if self._template is _RAW else self._runner.as_text(value)
            case list():
                return [self._as_text(each) for each in value]
            case dict():
                return {self._as_text(name): self._as_text(each) for name, each in value.items()}
            case Tool():
                return replace(
                    value,
                    parameters=self._as_text(value.parameters),
                    description=self._as_text(value.description),
                )
        return value


def _sampling_params(
    request: GenerationRequest, offered: ToolsOffered, form: ToolForm
) -> SamplingParams:
    params = request.params
    # Chosen here, so that the answer can be asked for again.
    known: dict[str, Any] = {"seed": secrets.randbelow(_NUM_SEEDS)}
    known |= {name: params[name] for name in _SAMPLING & params.keys()}
    if biases := params.get("logit_bias"):
        known["logit_bias"] = {int(token): bias for token, bias in biases.items()}
    constraint, may_explode = tool_forms.grammar_of(offered, form), False
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
