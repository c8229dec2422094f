"""The sizes a model is loaded with: those of its registration, else those of the settings."""

from dataclasses import dataclass, replace
from typing import Any

from django.conf import settings

from inference.engine.gguf_header import GGUFHeader
from inference.engine.memory_estimate import MemoryEstimate, estimate

_DEFAULT_BATCH_TOKENS = 512
# Of all sequences together; a draft of one is never longer, and their logits take memory.
_MAX_DRAFT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Fields of LoadParams, by the same names, that decide how much memory a model takes."""

    context_window: int
    max_num_seqs: int
    num_cache_cells: int | None
    num_batch_tokens: int
    max_draft_tokens: int

    def with_half_the_seqs(self) -> "ModelSizes":
        return replace(self, max_num_seqs=self.max_num_seqs // 2)

    def of_draft_model(self) -> "ModelSizes":
        """Those of the model that drafts for this one: as many tokens, and no drafts of its own."""
        return replace(self, max_draft_tokens=0)

    def estimate(
        self, header: GGUFHeader, gpu_layers: int, draft_header: GGUFHeader | None = None
    ) -> MemoryEstimate:
        """What the model of that header will need, and the one that drafts for it.

        `gpu_layers` as `used_gpu_layers` has it.
        """
        if draft_header is not None:
            draft = self.of_draft_model().estimate(draft_header, gpu_layers)
            return self.estimate(header, gpu_layers) + draft
        return estimate(
            header,
            context_window=self.context_window,
            max_num_seqs=self.max_num_seqs,
            num_cache_cells=self.num_cache_cells,
            num_batch_tokens=self.num_batch_tokens,
            gpu_layers=gpu_layers,
            max_draft_tokens=self.max_draft_tokens,
        )


def default_context_window(header: GGUFHeader) -> int:
    """The window that the model is trained for, up to N_CTX."""
    return min(header.context_length or settings.N_CTX, settings.N_CTX)


def model_sizes(config: dict[str, Any], context_window: int) -> ModelSizes:
    """The sizes of a registration or preset with this `config`."""
    wanted = config.get("num_batch_tokens") or settings.N_BATCH or _DEFAULT_BATCH_TOKENS
    num_batch_tokens = min(wanted, context_window)
    max_num_seqs = config.get("max_num_seqs", settings.MAX_NUM_SEQS)
    return ModelSizes(
        context_window=context_window,
        # A batch has room for one token of each sequence.
        max_num_seqs=min(max_num_seqs, num_batch_tokens),
        num_cache_cells=config.get("num_cache_cells"),
        num_batch_tokens=num_batch_tokens,
        max_draft_tokens=0 if config.get("speculative") == "off" else _MAX_DRAFT_TOKENS,
    )
