"""How llama.cpp chooses the next token of one sequence."""

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.engine.constraint import Constraint, ConstraintTokenizer
from inference.engine.deltas import TokenLogprob
from inference.engine.runner import Sampled
from inference.engine.sequence import SamplingParams

REPEAT_LAST_N = 64
# Logits divided by less leave the range of float32; what is likeliest is certain long before.
_MIN_TEMPERATURE = 1e-4

_Logits = npt.NDArray[np.float32]

_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class SamplerChain:
    """The samplers of one sequence, in llama.cpp's usual order, and its constraint.

    `llama` is the library's binding, handed in by the runner, which alone imports it.
    """

    def __init__(
        self,
        llama: Any,
        params: SamplingParams,
        prompt_tokens: list[int],
        tokenizer: ConstraintTokenizer,
        candidates: "Candidates",
        *,
        context_window: int,
    ) -> None:
        """Raises ConstraintError."""
        self.tokenizer = tokenizer
        self._llama = llama
        self._vocab_size = len(tokenizer.is_text)
        self._num_top_logprobs = params.logprobs
        self._spellings = tokenizer.spellings
        self._end_tokens = tokenizer.end_tokens
        self._constraint: Constraint | None = None
        self._forced: list[int] = []
        if params.constraint is not None:
            self._constraint = Constraint(
                tokenizer, params.constraint, may_explode=params.constraint_may_explode
            )
            self._forced = self._constraint.accept_forced()
        self._candidates = candidates
        options = llama.llama_sampler_chain_default_params()
        options.no_perf = True
        self._chain = llama.llama_sampler_chain_init(options)
        samplers = [
            *self._biases(params),
            *self._penalties(context_window, params, prompt_tokens),
            *self._choice(params),
        ]
        for sampler in samplers:
            llama.llama_sampler_chain_add(self._chain, sampler)
        # The chain would copy all logits to find the largest, which takes twice as long.
        self._is_argmax = params.temperature < _MIN_TEMPERATURE and len(samplers) == 1

    def free(self) -> None:
        self._llama.llama_sampler_free(self._chain)

    def sample(self, context: Any, row: int) -> Sampled:
        """Choose and accept what follows a row of the last batch.

        Raises ConstraintError.
        """
        pointer = self._llama.llama_get_logits_ith(context, row)
        logits = np.ctypeslib.as_array(pointer, (self._vocab_size,))
        if self._constraint is not None:
            sampled = self._sample_constrained(self._constraint, logits)
        else:
            if self._is_argmax:
                token = int(logits.argmax())
            else:
                token = int(self._llama.llama_sampler_sample(self._chain, context, row))
            is_end = token in self._end_tokens
            sampled = Sampled([] if is_end else [token], is_end)
        if self._num_top_logprobs is None or not sampled.tokens:
            return sampled
        return self._with_logprobs(sampled, logits, self._num_top_logprobs)

    def _with_logprobs(self, sampled: Sampled, logits: _Logits, num_top: int) -> Sampled:
        """By the model's own distribution, before biases, penalties and the temperature."""
        largest = float(logits.max())
        log_total = largest + float(np.log(np.exp(logits - largest).sum()))
        top = np.argpartition(logits, -num_top)[-num_top:] if num_top else np.empty(0, dtype=int)
        top = top[np.argsort(-logits[top], kind="stable")]
        names = self._spellings
        first, *forced = sampled.tokens
        logprob = TokenLogprob(
            names[first],
            float(logits[first]) - log_total,
            tuple((names[token], float(logits[token]) - log_total) for token in top.tolist()),
        )
        certain = (TokenLogprob(names[token], 0.0) for token in forced)
        return replace(sampled, logprobs=(logprob, *certain))

    def _sample_constrained(self, constraint: Constraint, logits: _Logits) -> Sampled:
        """Choose freely first: checking one token is cheap, finding all that are allowed is not."""
        tokens, self._forced = self._forced, []
        if not tokens:
            token = self._choose(logits)
            if not constraint.accept(token):
                token = self._choose(logits, constraint.allowed_tokens())
                constraint.accept(token)
            if token in self._end_tokens:
                return Sampled([], is_end=True)
            tokens = [token, *constraint.accept_forced()]
        for token in tokens:
            self._llama.llama_sampler_accept(self._chain, token)
        return Sampled(tokens, constraint.is_complete)

    def _choose(self, logits: _Logits, allowed: npt.NDArray[np.intp] | None = None) -> int:
        """The token that the chain selects from all, or from those that are allowed."""
        if self._is_argmax:
            return int(logits.argmax() if allowed is None else allowed[logits[allowed].argmax()])
        self._candidates.load(logits, allowed)
        return self._candidates.choose(self._chain)

    def _biases(self, params: SamplingParams) -> list[Any]:
        if not params.logit_bias:
            return []
        llama, num_biases = self._llama, len(params.logit_bias)
        biases = (llama.llama_logit_bias * num_biases)(
            *(llama.llama_logit_bias(token, bias) for token, bias in params.logit_bias.items())
        )
        # The library copies them.
        return [llama.llama_sampler_init_logit_bias(self._vocab_size, num_biases, biases)]

    def _penalties(
        self, context_window: int, params: SamplingParams, prompt_tokens: list[int]
    ) -> list[Any]:
        """Of the last tokens, prompt included, and of all generated ones."""
        new, samplers = self._llama.llama_sampler_init_penalties, []
        if params.repeat_penalty != 1:
            samplers.append(new(self._vocab_size, REPEAT_LAST_N, params.repeat_penalty, 0.0, 0.0))
            for token in prompt_tokens[-REPEAT_LAST_N:]:
                self._llama.llama_sampler_accept(samplers[0], token)
        frequency, presence = params.frequency_penalty, params.presence_penalty
        if frequency or presence:
            samplers.append(new(self._vocab_size, context_window, 1.0, frequency, presence))
        return samplers

    def _choice(self, params: SamplingParams) -> list[Any]:
        llama = self._llama
        if params.temperature < _MIN_TEMPERATURE:
            return [llama.llama_sampler_init_greedy()]
        seed = llama.LLAMA_DEFAULT_SEED  # llama.cpp takes a random one then
        if params.seed is not None:
            seed = params.seed % llama.LLAMA_DEFAULT_SEED
        return [
            llama.llama_sampler_init_top_k(params.top_k),
            llama.llama_sampler_init_top_p(params.top_p, 1),
            llama.llama_sampler_init_min_p(params.min_p, 1),
            llama.llama_sampler_init_temp(params.temperature),
            llama.llama_sampler_init_dist(seed),
        ]


class Candidates:
    """A llama_token_data_array with room for the whole vocabulary, reused by all sequences."""

    def __init__(self, llama: Any, vocab_size: int) -> None:
        self._llama = llama
        self._ids = np.arange(vocab_size, dtype=np.int32)
        self._data = np.zeros(vocab_size, dtype=_TOKEN_DATA)
        self._pointer = ctypes.cast(self._data.ctypes.data, llama.llama_token_data_p)
        self._native = llama.llama_token_data_array()

    def load(self, logits: _Logits, tokens: npt.NDArray[np.intp] | None = None) -> None:
        """All tokens with their logits, or some of them."""
        size = len(logits) if tokens is None else len(tokens)
        self._data["id"][:size] = self._ids if tokens is None else tokens
        self._data["logit"][:size] = logits if tokens is None else logits[tokens]
        self._reset(size)

    def choose(self, chain: Any) -> int:
        """The token the chain selects."""
        self._llama.llama_sampler_apply(chain, ctypes.byref(self._native))
        return int(self._native.data[self._native.selected].id)

    def _reset(self, size: int) -> None:
        # Samplers shrink and sort the array in place, or point it elsewhere.
        self._native.data = self._pointer
        self._native.size = size
        self._native.selected = -1
        self._native.sorted = False
