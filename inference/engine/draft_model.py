"""A small model that drafts what a large one with the same vocabulary is likely to choose."""

from dataclasses import dataclass, field

from inference.engine.kv_cache import common_prefix_length
from inference.engine.runner import Chunk, Runner
from inference.engine.sequence import SamplingParams, Sequence

# Of a prompt, computed in one step: it is read beside the large model's answer.
_MAX_PREFILL_TOKENS = 256


@dataclass(slots=True, eq=False)
class _Held:
    """What the memory has of a sequence: so many of its tokens, and behind them its own drafts."""

    request_id: str
    num_certain: int = 0
    drafts: list[int] = field(default_factory=list)


class DraftModel:
    """Greedy drafts of several sequences at once, each in the slot that it has in the large model.

    Its memory follows what the target chooses: drafts that were right stay, others are removed.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._sampler = runner.new_sampler(SamplingParams(temperature=0), [])
        self._held: dict[int, _Held] = {}

    def draft(self, lengths: list[tuple[Sequence, int]]) -> list[list[int]]:
        """Drafts of up to so many tokens of each sequence, in the order of slots.

        None yet of one whose prompt is still being read. Raises DecodeError.
        """
        drafts: list[list[int]] = [[] for _ in lengths]
        chunks: dict[int, Chunk] = {}
        budget = min(_MAX_PREFILL_TOKENS, self._runner.max_batch_tokens - len(lengths))
        for index, (sequence, _) in enumerate(lengths):
            chunks[index] = chunk = self._next_chunk(sequence, budget)
            budget -= len(chunk.tokens) - 1
        while chunks:
            rows = self._runner.decode(list(chunks.values()))
            following: dict[int, Chunk] = {}
            for (index, chunk), row in zip(chunks.items(), rows, strict=True):
                if not chunk.needs_logits:
                    continue
                sampled = self._runner.sample(self._sampler, row)
                drafts[index] += sampled.tokens
                if not sampled.is_end and len(drafts[index]) < lengths[index][1]:
                    end = chunk.start_position + len(chunk.tokens)
                    following[index] = Chunk(chunk.slot, end, sampled.tokens, needs_logits=True)
                    self._held[chunk.slot].drafts += sampled.tokens
            chunks = following
        return drafts

    def _next_chunk(self, sequence: Sequence, budget: int) -> Chunk:
        """What the memory lacks of a sequence, up to one token and `budget` others."""
        slot, memory = sequence.slot, self._runner.memory
        assert slot is not None, "only running sequences have drafts"
        held = self._held.get(slot)
        if held is None or held.request_id != sequence.request_id:
            held = self._held[slot] = _Held(sequence.request_id)
            memory.remove_sequence(slot)
        missing = sequence.tokens_from(held.num_certain)
        # The last token is computed in any case: its logits are needed.
        num_right = min(common_prefix_length(held.drafts, missing), len(missing) - 1)
        held.num_certain += num_right
        if num_right < len(held.drafts) and not memory.keep_prefix(slot, held.num_certain):
            held.num_certain = 0
        held.drafts = []
        missing = sequence.tokens_from(held.num_certain)
        tokens = missing[: 1 + budget]
        start = held.num_certain
        held.num_certain += len(tokens)
        return Chunk(slot, start, tokens, needs_logits=len(tokens) == len(missing))
