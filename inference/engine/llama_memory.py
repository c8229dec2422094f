"""What llama.cpp remembers of the sequences of one context."""

import ctypes
from typing import Any

import numpy as np

from inference.engine.errors import EngineError


class LlamaMemory:
    """Keys and values, or recurrent states, by slot. Implements `SequenceMemory`.

    `llama` is the library's binding, handed in by the runner, which alone imports it.
    Source: llama-kv-cache.cpp and llama-memory-recurrent.cpp of llama.cpp.
    """

    def __init__(self, llama: Any) -> None:
        self._llama = llama
        self._memory: Any = None
        self._context: Any = None
        self.can_copy = False
        self.can_cut = False

    def open(self, model: Any, context: Any, *, is_shared: bool, is_on_host: bool) -> None:
        """Take over a context's memory; `is_shared`: its sequences have one buffer for all.

        `is_on_host`: none of it lies on a GPU.
        Raises EngineError for a model that has none.
        """
        llama = self._llama
        self._memory, self._context = llama.llama_get_memory(context), context
        if not self._memory:
            raise EngineError("it has no KV cache and cannot generate text")
        self._window = int(llama.llama_model_n_swa(model))
        self._is_recurrent = bool(
            llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
        )
        self._copies_by_state = is_on_host and not is_shared
        # What slides out of a window goes with what is sure to be kept, not with a draft.
        self.can_cut = not self._is_recurrent
        # Cells of two sequences are never given up for new tokens, not even when both windows
        # have passed them: they would fill up the one buffer of all windows.
        self.can_copy = not self._is_recurrent and not (is_shared and self._window)

    def close(self) -> None:
        """The context is about to be freed."""
        self._memory = self._context = None

    def can_keep_prefix(self, slot: int, num_tokens: int) -> bool:
        """Whether a sequence could go on after the first `num_tokens` of those the slot holds.

        The next token's window must still be there; a recurrent state must not be cut at all.
        """
        memory = self._opened()
        if self._llama.llama_memory_seq_pos_max(memory, slot) == num_tokens - 1:
            return True
        oldest = self._llama.llama_memory_seq_pos_min(memory, slot)
        return not self._is_recurrent and oldest <= max(0, num_tokens - self._window)

    def has_all_cells(self, slot: int) -> bool:
        """Whether each token of the slot still has its own cell, in the order of the tokens."""
        return bool(self._llama.llama_memory_seq_pos_min(self._opened(), slot) == 0)

    def keep_prefix(self, slot: int, num_tokens: int) -> bool:
        """Cut the slot after `num_tokens`. False when that failed: the slot is empty then."""
        if self._llama.llama_memory_seq_rm(self._opened(), slot, num_tokens, -1):
            return True
        self.remove_sequence(slot)
        return False

    def copy_prefix(self, source: int, target: int, num_tokens: int) -> bool:
        """Replace what `target` holds by the first `num_tokens` of `source`; False as above.

        Between buffers llama.cpp copies all or aborts, so what is too much is cut afterwards. It
        copies whole buffers, however few of the cells are in use: fast within a GPU, and on the
        host slower than to save and restore those few. In one buffer for all nothing is moved: the
        cells belong to both then.
        """
        if self._copies_by_state:
            saved = self.save(source)
            if saved is not None and self.restore(target, saved):
                return self.keep_prefix(target, num_tokens)
        self.remove_sequence(target)
        self._llama.llama_memory_seq_cp(self._opened(), source, target, -1, -1)
        return self.keep_prefix(target, num_tokens)

    def remove_sequence(self, slot: int) -> None:
        """Forget all tokens of the slot."""
        self._llama.llama_memory_seq_rm(self._opened(), slot, -1, -1)

    def state_bytes(self, slot: int) -> int:
        """How many bytes `save` would take."""
        self._opened()
        return int(self._llama.llama_state_seq_get_size(self._context, slot))

    def save(self, slot: int) -> memoryview | None:
        """A copy of what the slot holds, without the cells that its window has passed."""
        try:
            data = np.empty(self.state_bytes(slot), np.uint8)
        except MemoryError:
            return None
        get_data = self._llama.llama_state_seq_get_data
        num_written = get_data(self._context, _pointer(data), len(data), slot)
        return data.data if num_written == len(data) else None

    def restore(self, slot: int, data: memoryview) -> bool:
        """Replace what the slot holds by what was saved.

        llama.cpp takes it only for as many buffers, and from cells of the same types.
        """
        self.remove_sequence(slot)
        state = np.frombuffer(data, np.uint8)
        set_data = self._llama.llama_state_seq_set_data
        if set_data(self._context, _pointer(state), len(state), slot):
            return True
        self.remove_sequence(slot)
        return False

    def _opened(self) -> Any:
        if not self._memory:
            raise EngineError("The model has been closed.")
        return self._memory


def _pointer(data: "np.ndarray[Any, np.dtype[np.uint8]]") -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
