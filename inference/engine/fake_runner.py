"""A model without weights, for tests of all that is not llama.cpp."""

import zlib
from collections.abc import Callable

from inference.engine.errors import DecodeError, GrammarError
from inference.engine.runner import Chunk
from inference.engine.sequence import SamplingParams


class FakeRunner:
    """Tokens are bytes; 256 ends the text. The next token depends on all tokens before it.

    It keeps the memory of each slot as llama.cpp does and refuses what llama.cpp would refuse
    (gaps in positions, too many tokens or cells), so that a wrong schedule fails a test.
    `fails(num_decodes)` says whether a call of `decode`, counted from 1, fails.
    """

    END = 256

    def __init__(
        self,
        *,
        max_num_seqs: int = 4,
        n_ctx_per_seq: int = 64,
        num_cells: int | None = None,
        max_batch_tokens: int = 16,
        fails: Callable[[int], bool] = lambda _num_decodes: False,
        next_token: Callable[[list[int]], int] | None = None,
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.n_ctx_per_seq = n_ctx_per_seq
        self.num_cells = n_ctx_per_seq * max_num_seqs if num_cells is None else num_cells
        self.max_batch_tokens = max_batch_tokens
        self.vocab_size = 257
        self.memory: dict[int, list[int]] = {}
        self.samplers: set[int] = set()
        self.num_decodes = 0
        self.is_closed = False
        self._fails = fails
        self._next_token = next_token or _hashed_token
        self._rows: dict[int, list[int]] = {}
        self._num_samplers = 0

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def token_to_bytes(self, token: int) -> bytes:
        return bytes([token])

    def is_end_of_generation(self, token: int) -> bool:
        return token == self.END

    def new_sampler(self, params: SamplingParams, prompt_tokens: list[int]) -> int:
        if params.grammar is not None:
            raise GrammarError("The fake runner knows no grammars.")
        self._num_samplers += 1
        self.samplers.add(self._num_samplers)
        return self._num_samplers

    def free_sampler(self, sampler: int) -> None:
        self.samplers.remove(sampler)

    def decode(self, chunks: list[Chunk]) -> list[int]:
        self.num_decodes += 1
        if self._fails(self.num_decodes):
            raise DecodeError("The fake runner was told to fail.")
        self._rows = {}
        rows: list[int] = []
        num_tokens = 0
        for chunk in chunks:
            held = self.memory.setdefault(chunk.slot, [])
            _require(chunk.start_position == len(held), "no gaps in the positions of a sequence")
            _require(len(chunk.tokens) > 0, "no empty chunks")
            _require(0 <= chunk.slot < self.max_num_seqs, "a slot there is")
            held.extend(chunk.tokens)
            _require(len(held) <= self.n_ctx_per_seq, "a sequence within the context window")
            num_tokens += len(chunk.tokens)
            rows.append(num_tokens - 1)
            if chunk.needs_logits:
                self._rows[num_tokens - 1] = list(held)
        _require(num_tokens <= self.max_batch_tokens, "a batch within its budget")
        _require(sum(map(len, self.memory.values())) <= self.num_cells, "cells for all tokens")
        return rows

    def sample(self, sampler: int, row: int) -> int:
        _require(sampler in self.samplers, "a sampler that was not freed")
        return self._next_token(self._rows[row])

    def remove_sequence(self, slot: int) -> None:
        self.memory.pop(slot, None)

    def close(self) -> None:
        self.is_closed = True


def _require(is_met: bool, what: str) -> None:
    if not is_met:
        raise AssertionError(f"llama.cpp requires {what}")


def _hashed_token(tokens: list[int]) -> int:
    return zlib.crc32(repr(tokens).encode()) % 257
