"""How much memory a model will need, estimated from its file's header before it is loaded.

Follows what llama.cpp allocates: src/llama-context.cpp, llama-kv-cache-iswa.cpp and
llama-memory-recurrent.cpp. The formula of the compute buffer was found by loading models of many
shapes; it holds with flash attention, which llama.cpp turns on wherever it can.
"""

from dataclasses import dataclass

from inference.engine.gguf_header import GGUFHeader, Layer

_CELL_PADDING = 256
# Tokens that LlamaRunner has llama.cpp compute at once.
_MAX_TOKENS = 512
_FLOAT_BYTES, _MASK_BYTES = 4, 2
# A token in the vocabulary that constraints are followed with: 388 to 414 were measured.
VOCABULARY_BYTES_PER_TOKEN = 420


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes a loaded model takes; `device_bytes` of the total lie on the GPU, the rest in RAM.

    `compute_bytes` are llama.cpp's buffers, and the vocabulary that constraints are followed with.
    """

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    device_bytes: int

    def __add__(self, other: "MemoryEstimate") -> "MemoryEstimate":
        return MemoryEstimate(
            weights_bytes=self.weights_bytes + other.weights_bytes,
            kv_cache_bytes=self.kv_cache_bytes + other.kv_cache_bytes,
            compute_bytes=self.compute_bytes + other.compute_bytes,
            device_bytes=self.device_bytes + other.device_bytes,
        )

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes

    @property
    def host_bytes(self) -> int:
        return self.total_bytes - self.device_bytes


@dataclass(frozen=True, slots=True)
class _Cache:
    """How llama.cpp lays out the cells: `num_buffers`, each with so many cells in a layer."""

    num_seqs: int
    num_buffers: int
    num_cells: int
    num_sliding_cells: int

    def layer_bytes(self, layer: Layer) -> int:
        num_cells = self.num_sliding_cells if layer.is_sliding else self.num_cells
        num_cells *= self.num_buffers
        return layer.kv_bytes_per_token * num_cells + layer.state_bytes * self.num_seqs


def estimate(
    header: GGUFHeader,
    *,
    context_window: int,
    max_num_seqs: int,
    num_cache_cells: int | None,
    num_batch_tokens: int,
    gpu_layers: int,
    max_draft_tokens: int = 0,
) -> MemoryEstimate:
    """The memory of a model that is loaded with these values of LoadParams.

    `gpu_layers`: 0 = none, -1 = all.
    """
    num_tokens = min(num_batch_tokens, _MAX_TOKENS)
    window = context_window or header.context_length
    cache = _cache(header, window, max_num_seqs, num_cache_cells, num_tokens)
    num_outputs = max_num_seqs + max_draft_tokens
    graph = _graph_bytes(header, cache, num_tokens, num_outputs)
    # The last layers go to the GPU first; the output counts as one more, behind them.
    first_on_device = 0 if gpu_layers < 0 else max(0, header.num_layers + 1 - gpu_layers)
    on_device = header.layers[first_on_device:]
    is_all_on_device = bool(gpu_layers) and len(on_device) == header.num_layers
    weights, device = header.weights_bytes, 0
    compute = header.vocab_size * num_outputs * _FLOAT_BYTES  # the logits, handed to the sampler
    compute += header.vocab_size * VOCABULARY_BYTES_PER_TOKEN
    if is_all_on_device:  # the inputs, handed to the GPU
        compute += header.embedding_length * num_tokens * _FLOAT_BYTES
        compute += _masks_bytes(header, cache, num_tokens)
    else:
        compute += graph
    if gpu_layers:
        # The embeddings stay in RAM; where they are the output too, the GPU has a copy of them.
        copied = header.embedding_bytes if header.ties_embeddings else 0
        weights += copied
        compute += graph
        device = copied + header.output_bytes + graph
        device += sum(layer.weights_bytes + cache.layer_bytes(layer) for layer in on_device)
    return MemoryEstimate(
        weights_bytes=weights,
        kv_cache_bytes=sum(map(cache.layer_bytes, header.layers)),
        compute_bytes=compute,
        device_bytes=device,
    )


def _cache(
    header: GGUFHeader, window: int, num_seqs: int, num_cells: int | None, num_tokens: int
) -> _Cache:
    """A buffer for each sequence's whole window, or a smaller one that they share."""
    is_shared = num_cells is not None and num_cells < window * num_seqs
    sliding_window = header.sliding_window or 0
    if is_shared and num_cells is not None:
        cells, sliding = _padded(num_cells), sliding_window * num_seqs + num_tokens
        return _Cache(num_seqs, 1, cells, min(cells, _padded(sliding)))
    cells = _padded(window)
    return _Cache(num_seqs, num_seqs, cells, min(cells, _padded(sliding_window + num_tokens)))


def _graph_bytes(header: GGUFHeader, cache: _Cache, num_tokens: int, num_outputs: int) -> int:
    """The compute buffer: the masks and the larger of a layer's and the output's vectors."""
    hidden, query, key = header.embedding_length, header.query_length, header.key_length
    experts = header.num_experts_used
    inner = 3 * header.inner_length * experts
    if experts > 1 and hidden > 2 * header.inner_length:
        inner += hidden * experts
    attention = max(2 * query + key, query + 3 * key) + 2 * hidden
    in_layer = max(attention, 3 * hidden + query + inner) * num_tokens * _FLOAT_BYTES
    # LlamaRunner asks for the logits of one token of each sequence, and of drafted tokens.
    num_outputs = min(num_tokens, num_outputs)
    in_output = (header.vocab_size * num_outputs + 2 * hidden * num_tokens) * _FLOAT_BYTES
    return max(in_layer + _masks_bytes(header, cache, num_tokens), in_output)


def _masks_bytes(header: GGUFHeader, cache: _Cache, num_tokens: int) -> int:
    """Which token sees which cell: one table for all full layers, one for all sliding ones."""
    num_cells = 0
    if any(layer.kv_bytes_per_token and not layer.is_sliding for layer in header.layers):
        num_cells += cache.num_cells
    if any(layer.is_sliding for layer in header.layers):
        num_cells += cache.num_sliding_cells
    return num_cells * num_tokens * _MASK_BYTES


def _padded(num_cells: int) -> int:
    return -(-num_cells // _CELL_PADDING) * _CELL_PADDING
