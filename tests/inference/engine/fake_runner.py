"""A model without weights, for tests of all that is not llama.cpp."""

import json
import zlib
from collections.abc import Callable

from inference.engine.errors import ConstraintError, DecodeError
from inference.engine.runner import Chunk, DetachedSampler, Sampled
from inference.engine.sequence import SamplingParams


class FakeMemory:
    """The tokens of each slot, kept as llama.cpp keeps them: `window` tokens and `num_spare` more.

    `is_recurrent`: it can only go on from its last token. `loses(num_changes)` says whether a
    cut or copy, counted from 1, fails though it should not have.
    """

    def __init__(
        self,
        *,
        can_copy: bool = True,
        is_recurrent: bool = False,
        window: int | None = None,
        num_spare: int = 0,
        loses: Callable[[int], bool] = lambda _num_changes: False,
    ) -> None:
        self.can_copy = can_copy and not is_recurrent
        self.can_cut = not is_recurrent
        self.tokens: dict[int, list[int]] = {}
        self.num_changes = 0
        self._is_recurrent = is_recurrent
        self._window = window
        self._num_spare = num_spare
        self._loses = loses
        self._oldest: dict[int, int] = {}

    def can_keep_prefix(self, slot: int, num_tokens: int) -> bool:
        if num_tokens == len(self.tokens.get(slot, [])):
            return True
        return not self._is_recurrent and self._has_window(slot, num_tokens)

    def has_all_cells(self, slot: int) -> bool:
        return not self._is_recurrent and self._oldest.get(slot, 0) == 0

    def keep_prefix(self, slot: int, num_tokens: int) -> bool:
        self.num_changes += 1
        if self._loses(self.num_changes):
            self.remove_sequence(slot)
            return False
        _require(self.can_keep_prefix(slot, num_tokens), "a prefix that can be kept")
        del self.tokens[slot][num_tokens:]
        return True

    def copy_prefix(self, source: int, target: int, num_tokens: int) -> bool:
        _require(self.can_copy and source != target, "a memory that can copy")
        self.tokens[target] = list(self.tokens[source])
        self._oldest[target] = self._oldest.get(source, 0)
        return self.keep_prefix(target, num_tokens)

    def remove_sequence(self, slot: int) -> None:
        self.tokens.pop(slot, None)
        self._oldest.pop(slot, None)

    def state_bytes(self, slot: int) -> int:
        return len(self._state(slot))

    def save(self, slot: int) -> memoryview | None:
        self.num_changes += 1
        return None if self._loses(self.num_changes) else memoryview(self._state(slot))

    def restore(self, slot: int, data: memoryview) -> bool:
        self.num_changes += 1
        self.remove_sequence(slot)
        if self._loses(self.num_changes):
            return False
        self.tokens[slot], self._oldest[slot] = json.loads(bytes(data))
        return True

    def _state(self, slot: int) -> bytes:
        return json.dumps([self.tokens[slot], self._oldest.get(slot, 0)]).encode()

    def extend(self, slot: int, start_position: int, tokens: list[int]) -> list[int]:
        """Add computed tokens; all that the slot holds then."""
        held = self.tokens.setdefault(slot, [])
        _require(start_position == len(held), "no gaps in the positions of a sequence")
        _require(self._has_window(slot, start_position), "the window of the tokens to compute")
        held.extend(tokens)
        if self._window is not None:
            oldest = len(held) - self._window - self._num_spare
            self._oldest[slot] = max(self._oldest.get(slot, 0), oldest)
        return held

    def _has_window(self, slot: int, num_tokens: int) -> bool:
        if self._window is None:
            return True
        return self._oldest.get(slot, 0) <= max(0, num_tokens - self._window)


class FakeSampler:
    def __init__(self, detached: "set[FakeSampler]") -> None:
        self._detached = detached

    def free(self) -> None:
        self._detached.remove(self)


class FakeRunner:
    """Tokens are bytes; 256 ends the text. The next token depends on all tokens before it.

    It keeps the memory of each slot as llama.cpp does and refuses what llama.cpp would refuse
    (gaps in positions, too many tokens or cells), so that a wrong schedule fails a test.
    `fails(num_decodes)` says whether a call of `decode`, counted from 1, fails;
    `num_forced(tokens)` how many tokens are known to follow the one chosen after these.
    """

    END = 256

    def __init__(
        self,
        *,
        max_num_seqs: int = 4,
        n_ctx_per_seq: int = 64,
        num_cells: int | None = None,
        max_batch_tokens: int = 16,
        max_draft_tokens: int = 0,
        memory: FakeMemory | None = None,
        fails: Callable[[int], bool] = lambda _num_decodes: False,
        next_token: Callable[[list[int]], int] | None = None,
        num_forced: Callable[[list[int]], int] = lambda _tokens: 0,
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.n_ctx_per_seq = n_ctx_per_seq
        self.num_cells = n_ctx_per_seq * max_num_seqs if num_cells is None else num_cells
        self.max_batch_tokens = max_batch_tokens
        self.max_draft_tokens = max_draft_tokens
        self.vocab_size = 257
        self.thread_counts = [1]
        self.memory = memory or FakeMemory()
        self.samplers: set[int] = set()
        self.detached: set[FakeSampler] = set()
        self.num_decodes = 0
        self.num_computed_tokens = 0
        self.is_closed = False
        self.control_tokens: dict[str, int] = {}
        self._fails = fails
        self._next_token = next_token or _hashed_token
        self._num_forced = num_forced
        self._rows: dict[int, list[int]] = {}
        self._num_samplers = 0

    def use_threads(self, num_threads: int) -> None:
        assert num_threads in self.thread_counts

    def as_text(self, content: str) -> str:
        return content

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def control_token(self, name: str) -> int | None:
        return self.control_tokens.get(name)

    def token_to_bytes(self, token: int) -> bytes:
        return bytes([token])

    def new_sampler(self, params: SamplingParams, prompt_tokens: list[int]) -> int:
        if params.constraint is not None:
            raise ConstraintError("the fake runner knows no grammars")
        self._num_samplers += 1
        self.samplers.add(self._num_samplers)
        return self._num_samplers

    def free_sampler(self, sampler: int) -> None:
        self.samplers.remove(sampler)

    def detach_sampler(self, sampler: int) -> "FakeSampler":
        self.samplers.remove(sampler)
        self.detached.add(detached := FakeSampler(self.detached))
        return detached

    def attach_sampler(self, detached: DetachedSampler) -> int:
        detached.free()
        return self.new_sampler(SamplingParams(), [])

    def decode(self, chunks: list[Chunk]) -> list[int]:
        self.num_decodes += 1
        if self._fails(self.num_decodes):
            self.memory.tokens |= {chunk.slot: [-1] for chunk in chunks}  # whatever is left there
            raise DecodeError("The fake runner was told to fail.")
        self._rows = {}
        rows: list[int] = []
        num_tokens = num_drafts = 0
        _require(chunks == sorted(chunks, key=lambda c: c.slot), "slots that follow one another")
        for chunk in chunks:
            _require(len(chunk.tokens) > 0, "no empty chunks")
            _require(0 <= chunk.slot < self.max_num_seqs, "a slot there is")
            tokens = chunk.tokens + chunk.drafts
            held = self.memory.extend(chunk.slot, chunk.start_position, tokens)
            _require(len(held) <= self.n_ctx_per_seq, "a sequence within the context window")
            num_tokens += len(tokens)
            num_drafts += len(chunk.drafts)
            first = num_tokens - len(chunk.drafts) - 1
            rows.append(first)
            if chunk.needs_logits:
                for index in range(1 + len(chunk.drafts)):
                    end = len(held) - len(chunk.drafts) + index
                    self._rows[first + index] = held[:end]
        _require(num_drafts <= self.max_draft_tokens, "room for the logits of drafts")
        _require(num_tokens <= self.max_batch_tokens, "a batch within its budget")
        num_held = sum(map(len, self.memory.tokens.values()))
        _require(num_held <= self.num_cells, "cells for all tokens")
        self.num_computed_tokens += num_tokens
        return rows

    def sample(self, sampler: int, row: int) -> Sampled:
        _require(sampler in self.samplers, "a sampler that was not freed")
        before, tokens = self._rows[row], list[int]()
        for _ in range(1 + self._num_forced(before)):
            token = self._next_token(before + tokens)
            if token == self.END:
                return Sampled(tokens, is_end=True)
            tokens.append(token)
        return Sampled(tokens)

    def close(self) -> None:
        self.is_closed = True


def _require(is_met: bool, what: str) -> None:
    if not is_met:
        raise AssertionError(f"llama.cpp requires {what}")


def _hashed_token(tokens: list[int]) -> int:
    return zlib.crc32(repr(tokens).encode()) % 257
