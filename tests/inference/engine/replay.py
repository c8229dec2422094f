"""Greedy answers that can be compared: equal, but where tokens were all but equally likely."""

import numpy as np
import numpy.typing as npt

from inference import structured_output
from inference.engine.engine import Engine
from inference.engine.kv_cache import common_prefix_length
from inference.engine.llama_runner import LlamaRunner, llama
from inference.engine.runner import Chunk
from inference.engine.sequence import Sequence

Logits = npt.NDArray[np.float32]

_FORMAT = structured_output.normalize(
    None, {"type": "object", "properties": {"the_answer": {"type": "string"}}}
)
assert _FORMAT is not None
ANSWER_CONSTRAINT = structured_output.constraint_for(_FORMAT)

# Batches of different sizes add floats in different orders, so that a logit comes out a little
# different: a choice between two tokens that are closer than this may turn out either way.
MAX_TIE = 0.05
# The same where llama.cpp uses another kernel for some of the batches (weights of Q4_K: from four
# tokens on), or where sequences share a buffer and attention meets their cells in another order.
MAX_TIE_OF_KERNELS = 0.5


def new_engine(runner: LlamaRunner) -> Engine:
    """With an empty cache, and steps that take no time: the same ones in every run."""
    return Engine(runner, clock=lambda: 0.0)


def assert_same_but_for_ties(
    runner: LlamaRunner, one: Sequence, other: Sequence, max_tie: float = MAX_TIE
) -> None:
    """Equal outputs; where they part, replay what they share: both choices were as good as best.

    No engine may be using the runner.
    """
    assert one.prompt_tokens == other.prompt_tokens
    if one.output_tokens == other.output_tokens:
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        return
    num_same = common_prefix_length(one.output_tokens, other.output_tokens)
    logits = logits_after(runner, one.prompt_tokens + one.output_tokens[:num_same])
    for sequence in (one, other):
        chosen = logits[_choice(runner, sequence, num_same, logits)]
        assert logits.max() - chosen < max_tie, f"{one.output_tokens} {other.output_tokens}"


def logits_after(runner: LlamaRunner, tokens: list[int]) -> Logits:
    """The logits of all tokens of the vocabulary as the next one, computed from nothing."""
    runner.memory.remove_sequence(0)
    for start in range(0, len(tokens), runner.max_batch_tokens):
        piece = tokens[start : start + runner.max_batch_tokens]
        (row,) = runner.decode([Chunk(0, start, piece, needs_logits=True)])
    pointer = llama.llama_get_logits_ith(runner._context, row)
    return np.ctypeslib.as_array(pointer, (runner.vocab_size,)).copy()


def _choice(runner: LlamaRunner, sequence: Sequence, index: int, logits: Logits) -> int:
    """The token chosen there; the end of the text is not among the output tokens."""
    if index < len(sequence.output_tokens):
        return sequence.output_tokens[index]
    likely = np.argsort(logits)[::-1]
    return int(next(token for token in likely if token in runner._tokenizer.end_tokens))
