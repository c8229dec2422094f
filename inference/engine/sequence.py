"""One request on its way through the engine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from inference.engine.deltas import TokenLogprob
from inference.engine.errors import EngineError, InvalidRequestError
from inference.engine.saved_state import SavedState
from inference.engine.text import TextAssembler


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    ERROR = "error"


_RANGES = (
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("top_k", 0, 2**31 - 1),
    ("min_p", 0, 1),
    ("frequency_penalty", -2, 2),
    ("presence_penalty", -2, 2),
    ("repeat_penalty", 1e-6, 1e6),
    ("seed", 0, math.inf),
    ("max_tokens", 1, 2**31 - 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen. The defaults sample from the plain distribution.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch these filters off.
    `frequency_penalty` and `presence_penalty` count the generated tokens, as OpenAI's do;
    `repeat_penalty` looks at the last 64 tokens, prompt included, as llama.cpp's does.
    `constraint` is the text of an llguidance grammar; `constraint_may_explode` says that it may be
    so ambiguous that a token takes any time to follow. `logprobs`: the probability of each token
    comes out too, with those of so many others; None = without. `logit_bias` is added to the logits
    of some tokens. `deterministic`: the same prompt and values
    give the same tokens and logits to the bit, whatever else the engine does; with a seed, and
    where each sequence has a KV buffer of its own. Raises InvalidRequestError on a value out of
    bounds.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    constraint: str | None = None
    constraint_may_explode: bool = False
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            if not low <= (value := getattr(self, name) or 0) <= high:
                raise InvalidRequestError(
                    f"{name} is {value}: it must be between {low} and {high}."
                )
        if "" in self.stop:
            raise InvalidRequestError("A stop sequence is empty: leave it out.")


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one request.

    waiting (no slot) -> prefill -> decode -> finished (`finish_reason` set)
       ^-------- paused ----------------'

    The first `num_computed_tokens` of prompt + output are in the model's memory, at `slot`, or in
    `saved` while it has none; `num_cached_tokens` of them were there before, of a sequence of the
    same `owner`. Of one that has not begun, `saved` is what another one has left, if anything.
    """

    request_id: str
    prompt_tokens: list[int]
    params: SamplingParams
    max_output_tokens: int
    sampler: int
    owner: str = ""
    is_urgent: bool = False
    stop_tokens: set[int | None] = field(default_factory=set)
    # Control tokens whose names are given out as text.
    marks: dict[int, bytes] = field(default_factory=dict)
    output_tokens: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    # Of all drafts: those that were right, and those that were computed in vain.
    num_accepted_drafts: int = 0
    num_rejected_drafts: int = 0
    slot: int | None = None
    saved: SavedState | None = None
    finish_reason: FinishReason | None = None
    error: EngineError | None = None
    # Of the tokens of the last step, where they were asked for.
    logprobs: tuple[TokenLogprob, ...] = ()
    assembler: TextAssembler = field(init=False)

    def __post_init__(self) -> None:
        self.assembler = TextAssembler(self.params.stop)

    @property
    def text(self) -> str:
        """The text released so far; all of it once the sequence has finished."""
        return self.assembler.text

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_tokens) + len(self.output_tokens)

    @property
    def max_cells(self) -> int:
        """Cells of the KV cache it needs at most."""
        return len(self.prompt_tokens) + self.max_output_tokens

    @property
    def goes_first(self) -> bool:
        """Whether it is admitted before others that wait: it is urgent, or was paused."""
        return self.is_urgent or self.num_computed_tokens > 0

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed_tokens < len(self.prompt_tokens)

    def tokens_from(self, start: int) -> list[int]:
        """Those of prompt and output from a position on."""
        num_prompt = len(self.prompt_tokens)
        if start < num_prompt:
            return self.prompt_tokens[start:] + self.output_tokens
        return self.output_tokens[start - num_prompt :]

    def next_tokens(self, limit: int) -> list[int]:
        """The tokens to compute next, up to `limit`: of the prompt, or the newest of the output."""
        start = self.num_computed_tokens
        if self.is_prefilling:
            return self.prompt_tokens[start : start + limit]
        start -= len(self.prompt_tokens)
        return self.output_tokens[start : start + limit]
