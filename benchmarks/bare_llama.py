"""The reference for the engine: a loop over llama.cpp's C API and nothing else."""

import time
from typing import Any

from inference.engine.llama_runner import LlamaRunner, llama


class BareLoop:
    """Decodes all sequences in step, greedily, on the context of a runner that is not in use."""

    def __init__(self, runner: LlamaRunner) -> None:
        self._context: Any = runner._context
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(runner.max_batch_tokens, 0, 1)
        self._sampler = llama.llama_sampler_init_greedy()
        self._tokens: list[int] = []
        self._position = 0

    def close(self) -> None:
        llama.llama_sampler_free(self._sampler)
        llama.llama_batch_free(self._batch)

    def start(self, prompts: list[list[int]]) -> None:
        """Compute prompts of equal length, in place of what was there before."""
        llama.llama_memory_clear(self._memory, True)
        self._tokens = [self._prefill(slot, prompt) for slot, prompt in enumerate(prompts)]
        self._position = len(prompts[0])

    def step_seconds(self) -> float:
        """The time of one step: a token for each prompt."""
        started = time.perf_counter()
        self._tokens = self._step(self._tokens, self._position)
        self._position += 1
        return time.perf_counter() - started

    def _prefill(self, slot: int, prompt: list[int]) -> int:
        for position, token in enumerate(prompt):
            self._put(position, token, position, slot, position == len(prompt) - 1)
        self._decode(len(prompt))
        return self._sample(len(prompt) - 1)

    def _step(self, tokens: list[int], position: int) -> list[int]:
        for slot, token in enumerate(tokens):
            self._put(slot, token, position, slot, True)
        self._decode(len(tokens))
        return [self._sample(row) for row in range(len(tokens))]

    def _put(self, row: int, token: int, position: int, slot: int, needs_logits: bool) -> None:
        batch = self._batch
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = slot
        batch.logits[row] = needs_logits

    def _decode(self, num_tokens: int) -> None:
        self._batch.n_tokens = num_tokens
        if status := llama.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama_decode: status {status}")

    def _sample(self, row: int) -> int:
        return int(llama.llama_sampler_sample(self._sampler, self._context, row))
