"""What the engine asks of a model: the seam between scheduling and llama.cpp."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from inference.engine.deltas import TokenLogprob
from inference.engine.errors import ModelLoadError
from inference.engine.sequence import SamplingParams


class SplitMode(StrEnum):
    """What several GPUs share of a model: nothing, its layers one after another, or each layer."""

    NONE = "none"
    LAYER = "layer"
    ROW = "row"


@dataclass(frozen=True, slots=True)
class GPUSplit:
    """How a model lies on the GPUs of its process, which count from 0 here.

    `tensor_split`: the proportion of it on each, None = as their free memory. `main_gpu` has all of
    it with `split_mode` none, and with `row` what cannot be split.
    """

    split_mode: SplitMode = SplitMode.LAYER
    main_gpu: int = 0
    tensor_split: tuple[float, ...] | None = None

    def shares(self, num_gpus: int) -> list[float] | None:
        """The part of the model on each of so many GPUs; None: as their free memory.

        Raises ModelLoadError where the split names GPUs that are not there.
        """
        num_named = max(self.main_gpu + 1, len(self.tensor_split or ()))
        if num_named > num_gpus:
            raise ModelLoadError(
                f"its registration names {num_named} GPUs and this worker has {num_gpus}: change "
                "main_gpu and tensor_split, or give the worker more by GPU_INDEX"
            )
        if self.split_mode == SplitMode.NONE:
            return [float(index == self.main_gpu) for index in range(num_gpus)]
        if self.tensor_split is None:
            return None
        missing = num_gpus - len(self.tensor_split)
        return [part / sum(self.tensor_split) for part in self.tensor_split] + [0.0] * missing


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadParams:
    """How a GGUF is loaded.

    `context_window`: tokens a sequence may have, 0 = what the model was trained for.
    `num_cache_cells`: tokens all sequences may have together, None = a whole window each; fewer
    save memory when few sequences are long.
    `num_batch_tokens`: tokens computed in one step at most. With fewer than 64 on a CPU, greedy
    answers depend less on what else is in the batch: from 64 on, llama.cpp's attention uses
    another kernel, which is up to a third faster. `gpu_layers`: -1 = all.
    `num_threads`: None = one for each core this process may use, and fewer while others use them
    too. `gpu_split`: None without a GPU.
    `max_draft_tokens`: room for the logits of so many drafted tokens in a step, 0 = no drafts.
    `is_vocabulary_only`: without its weights, to count tokens.
    """

    path: Path
    context_window: int = 4096
    num_cache_cells: int | None = None
    num_batch_tokens: int = 512
    max_num_seqs: int = 8
    gpu_layers: int = -1
    gpu_split: GPUSplit | None = None
    num_threads: int | None = None
    max_draft_tokens: int = 0
    is_vocabulary_only: bool = False

    def __post_init__(self) -> None:
        """Raises ModelLoadError on a size that llama.cpp would take for an enormous one."""
        sizes = (self.num_batch_tokens, self.max_num_seqs, self.num_cache_cells or 1)
        if self.context_window < 0 or min(sizes) < 1:
            raise ModelLoadError(f"{self.path} cannot be loaded with a size below 1: {self}.")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence, from `start_position` on, to be computed in a batch.

    `drafts` are computed behind them, though they may not be what is chosen; each has logits.
    """

    slot: int
    start_position: int
    tokens: list[int]
    needs_logits: bool
    drafts: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next tokens of a sequence, possibly none, and whether they are its last.

    More than one where a constraint leaves no choice about what follows the first. A token that
    ends the generation is not among them. `logprobs` are those of the tokens, where they were asked
    for; of a token that a constraint leaves no choice about it is 0.
    """

    tokens: list[int]
    is_end: bool = False
    logprobs: tuple[TokenLogprob, ...] = ()


class SequenceMemory(Protocol):
    """What a model remembers of several sequences, addressed by slot: keys and values, or states.

    A slot holds the tokens 0 to n without a gap. Not every memory can be cut: a recurrent state
    is that of all its tokens, and of a sliding window the oldest are gone.
    """

    @property
    def can_copy(self) -> bool:
        """Whether a prefix of one slot can be copied to another at all."""
        ...

    @property
    def can_cut(self) -> bool:
        """Whether a slot can give up tokens that were computed in the last batch."""
        ...

    def can_keep_prefix(self, slot: int, num_tokens: int) -> bool:
        """Whether a sequence could go on after the first `num_tokens` of those the slot holds."""
        ...

    def has_all_cells(self, slot: int) -> bool:
        """Whether each token of the slot still has its own cell, in the order of the tokens.

        Not of a recurrent state, nor after the window of a sliding one has moved on: its cells
        are used again, and sums over them are then made in another order.
        """
        ...

    def keep_prefix(self, slot: int, num_tokens: int) -> bool:
        """Cut the slot after `num_tokens`. False when that failed: the slot is empty then."""
        ...

    def copy_prefix(self, source: int, target: int, num_tokens: int) -> bool:
        """Replace what `target` holds by the first `num_tokens` of `source`.

        False when that failed: the target is empty then.
        """
        ...

    def remove_sequence(self, slot: int) -> None:
        """Forget all tokens of the slot."""
        ...

    def state_bytes(self, slot: int) -> int:
        """How many bytes `save` would take."""
        ...

    def save(self, slot: int) -> memoryview | None:
        """A copy of what the slot holds; None when that failed."""
        ...

    def restore(self, slot: int, data: memoryview) -> bool:
        """Replace what the slot holds by what was saved, in a memory of the same shape.

        False when that failed: the slot is empty then.
        """
        ...


class DetachedSampler(Protocol):
    """The sampling state of a sequence that has left its runner; it outlives that one."""

    def free(self) -> None: ...


class Runner(Protocol):
    """A loaded model with memory for several sequences."""

    @property
    def memory(self) -> SequenceMemory: ...

    @property
    def n_ctx_per_seq(self) -> int:
        """Tokens one sequence may have."""
        ...

    @property
    def num_cells(self) -> int:
        """Tokens all sequences may have together."""
        ...

    @property
    def max_num_seqs(self) -> int: ...

    @property
    def max_batch_tokens(self) -> int: ...

    @property
    def max_draft_tokens(self) -> int:
        """Drafts that a batch may have in all."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def thread_counts(self) -> Sequence[int]:
        """How many threads may compute a step, in order; the last one is what it begins with."""
        ...

    def use_threads(self, num_threads: int) -> None:
        """Compute by so many from the next step on."""
        ...

    def token_to_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens."""
        ...

    def control_token(self, name: str) -> int | None:
        """The token that writes no text and has this name; None without one."""
        ...

    def new_sampler(self, params: SamplingParams, prompt_tokens: list[int]) -> int:
        """A handle to the sampling state of one sequence. Raises ConstraintError.

        May be called while another thread runs a step.
        """
        ...

    def free_sampler(self, sampler: int) -> None: ...

    def detach_sampler(self, sampler: int) -> DetachedSampler:
        """Hand over the sampling state of a sequence, to `attach_sampler` of any such runner."""
        ...

    def attach_sampler(self, detached: DetachedSampler) -> int:
        """A handle to a sampling state that goes on where it was."""
        ...

    def decode(self, chunks: list[Chunk]) -> list[int]:
        """Compute one batch; return for each chunk the row of its last token in the batch.

        The rows of its drafts follow that one.
        Chunks in the order of their slots are computed together as far as these have no gaps.
        Raises DecodeError; then the memory of the slots in the batch is undefined.
        """
        ...

    def sample(self, sampler: int, row: int) -> Sampled:
        """Choose the next token from the logits of a row of the last batch.

        Raises ConstraintError.
        """
        ...
