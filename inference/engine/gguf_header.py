"""What a GGUF file says about its model: what it is called, and what it needs of memory."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from inference.engine.errors import InvalidGGUFError
from inference.engine.gguf_file import GGUFFile, Metadata, read_model

# Keys and values are kept at 16 bits each, the state of recurrent layers at 32.
_KV_BYTES, _STATE_BYTES = 2, 4
_ARCHITECTURE = re.compile(r"[a-z][a-z0-9_-]{2,63}")
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp
# Tensors by which a layer is known to carry a state from token to token.
_RECURRENT_TENSORS = ("ssm_", "shortconv", "time_mix")
_EMBEDDING_TENSORS = ("token_", "position_", "per_layer_token_")
_RANK_POOLING = 4  # LLAMA_POOLING_TYPE_RANK
# Every how many layers one looks back to the start, and whether it is the first of them, where
# llama.cpp does not ask the file. Source: load_swa_pattern in src/models/*.cpp of llama.cpp.
_PATTERNS = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "llama4": (4, False),
    "mellum": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
_DEFAULT_WINDOWS = {"exaone-moe": 128, "gemma2": 4096, "llama4": 8192}


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps in memory.

    `kv_bytes_per_token`: keys and values, `state_bytes`: what a recurrent layer keeps of each
    sequence instead. `is_sliding`: it looks back no further than the sliding window.
    """

    weights_bytes: int
    kv_bytes_per_token: int
    state_bytes: int = 0
    is_sliding: bool = False


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What is known of a model before it is loaded. Sizes in bytes; 0 where the file is silent.

    `sliding_window`: tokens some layers look back at most, None where all look back to the start.
    `embedding_bytes` of the weights turn tokens into vectors, `output_bytes` vectors into logits;
    where `ties_embeddings`, the former serve as the latter. `is_ranking`: it scores how well a text
    answers a query, and makes neither vectors nor text.
    `query_length`, `key_length`: numbers a token has in all heads of a layer together;
    `inner_length`: in the inner part of the layer, in each of `num_experts_used`.
    """

    architecture: str
    name: str
    num_parameters: int
    quantization: str
    context_length: int
    embedding_length: int
    query_length: int
    key_length: int
    inner_length: int
    num_experts_used: int
    vocab_size: int
    sliding_window: int | None
    layers: tuple[Layer, ...]
    chat_template: str | None
    size_bytes: int
    weights_bytes: int
    embedding_bytes: int
    output_bytes: int
    ties_embeddings: bool
    is_ranking: bool = False

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return sum(layer.kv_bytes_per_token for layer in self.layers)


def read_header(path: Path) -> GGUFHeader:
    """Read what a GGUF file says about its model, together with the parts of a split one.

    Raises InvalidGGUFError as `read_model` does, and for a model that llama.cpp cannot run; and
    OSError for a file that cannot be opened.
    """
    file = read_model(path)
    metadata, tensors = file.metadata, file.tensors
    if not _is_known(metadata.architecture):
        raise InvalidGGUFError(
            f"{path.name} has the architecture {metadata.architecture[:100]!r}, which llama.cpp "
            "does not know: take another model, or a newer llama-cpp-python."
        )
    if not any(tensor.num_elements for tensor in tensors):
        raise InvalidGGUFError(f"{path.name} has no weights: take a file that has.")
    num_heads = metadata.of_model("attention.head_count")
    key_length = _head_length(metadata, "key")
    num_experts_used = metadata.of_model("expert_used_count")
    # Of the feed-forward part, of one expert, or of a recurrent layer, which needs it twice.
    inner_length = metadata.of_model("feed_forward_length")
    if num_experts_used:
        inner_length = metadata.of_model("expert_feed_forward_length", inner_length)
    inner_length = max(inner_length, 2 * metadata.of_model("ssm.inner_size"))
    vocab_size = metadata.of_model("vocab_size") or metadata.lengths.get("tokenizer.ggml.tokens", 0)
    embedding_bytes = sum(t.num_bytes for t in tensors if t.name.startswith(_EMBEDDING_TENSORS))
    not_output = ("blk.", *_EMBEDDING_TENSORS)
    return GGUFHeader(
        architecture=metadata.architecture,
        name=metadata.text("general.name"),
        num_parameters=sum(tensor.num_elements for tensor in tensors),
        quantization=_quantization(file),
        context_length=metadata.of_model("context_length"),
        embedding_length=metadata.of_model("embedding_length"),
        query_length=num_heads * key_length,
        key_length=metadata.of_model("attention.head_count_kv", num_heads) * key_length,
        inner_length=inner_length,
        num_experts_used=num_experts_used or 1,
        vocab_size=vocab_size,
        sliding_window=_sliding_window(metadata),
        layers=_layers(file),
        chat_template=metadata.text("tokenizer.chat_template") or None,
        size_bytes=file.size_bytes,
        weights_bytes=sum(tensor.num_bytes for tensor in tensors),
        embedding_bytes=embedding_bytes,
        output_bytes=sum(t.num_bytes for t in tensors if not t.name.startswith(not_output)),
        ties_embeddings=all(tensor.name != "output.weight" for tensor in tensors),
        is_ranking=metadata.of_model("pooling_type") == _RANK_POOLING,
    )


def _is_known(architecture: str) -> bool:
    """Whether llama.cpp has it, whose library holds the names as C strings.

    Those that are the end of another one, such as qwen2 of rwkv6qwen2, the linker leaves out; the
    gguf library has them. It lacks the newest.
    """
    from gguf.constants import MODEL_ARCH_NAMES  # with numpy and more: see gguf_file

    if architecture in MODEL_ARCH_NAMES.values():
        return True
    if not _ARCHITECTURE.fullmatch(architecture):
        return False
    spec = find_spec("llama_cpp")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in Path(folder).glob("lib/libllama.so"):
            return f"\0{architecture}\0".encode() in library.read_bytes()
    return True  # nobody can tell here


def _layers(file: GGUFFile) -> tuple[Layer, ...]:
    metadata = file.metadata
    num_layers = metadata.of_model("block_count")
    if num_layers > _MAX_LAYERS:
        raise InvalidGGUFError(f"The model has {num_layers} layers: llama.cpp takes {_MAX_LAYERS}.")
    num_heads = metadata.of_model("attention.head_count") or 1
    kv_heads = metadata.of_layers("attention.head_count_kv", num_layers, num_heads)
    # The last layers may use the cache of others, or predict tokens ahead, which is not done here.
    num_without = metadata.of_model("attention.shared_kv_layers")
    num_without += metadata.of_model("nextn_predict_layers")
    kv_heads[num_layers - min(num_without, num_layers) :] = [0] * min(num_without, num_layers)
    # Bytes of the tensors `blk.<layer>.<name>`.
    tensors: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for tensor in file.tensors:
        block, _, rest = tensor.name.partition(".")
        number, _, name = rest.partition(".")
        if block == "blk" and number.isdecimal():
            tensors[int(number)][name] = tensor.num_bytes
    # With multi-head latent attention the values are a part of what is kept as keys.
    is_latent = metadata.of_model("attention.key_length_mla")
    layers = []
    for index, is_sliding in enumerate(_sliding_layers(metadata, num_layers)):
        suffix = "_swa" if is_sliding else ""
        numbers_per_head = _head_length(metadata, "key", suffix)
        if not is_latent:
            numbers_per_head += _head_length(metadata, "value", suffix)
        is_recurrent = any(name.startswith(_RECURRENT_TENSORS) for name in tensors[index])
        kv_bytes = kv_heads[index] * numbers_per_head * _KV_BYTES
        if is_recurrent and "attn_k.weight" not in tensors[index]:
            kv_bytes = 0
        state_bytes = _state_bytes(metadata) if is_recurrent else 0
        weights_bytes = sum(tensors[index].values())
        layers.append(Layer(weights_bytes, kv_bytes, state_bytes, is_sliding))
    return tuple(layers)


def _head_length(metadata: Metadata, what: str, suffix: str = "") -> int:
    """Numbers in a `key` or `value` of one head."""
    num_heads = metadata.of_model("attention.head_count") or 1
    default = metadata.of_model("embedding_length") // num_heads
    length = metadata.of_model(f"attention.{what}_length", default)
    return metadata.of_model(f"attention.{what}_length{suffix}", length)


def _state_bytes(metadata: Metadata) -> int:
    """State of one sequence in one recurrent layer.

    Source: n_embd_r and n_embd_s in src/llama-hparams.cpp of llama.cpp.
    """
    number = metadata.of_model
    if wkv_head_size := number("wkv.head_size"):
        num_shifted = number("token_shift_count", 2)
        return _STATE_BYTES * number("embedding_length") * (num_shifted + wkv_head_size)
    if short_convolution := number("shortconv.l_cache"):
        return _STATE_BYTES * number("embedding_length") * (short_convolution - 1)
    kernel, inner, state = (
        number(f"ssm.{key}") for key in ("conv_kernel", "inner_size", "state_size")
    )
    if head := number("kda.head_dim"):
        inner = number("attention.head_count") * head
        return _STATE_BYTES * inner * (3 * (kernel - 1 if kernel else 3) + head)
    convolution = max(kernel - 1, 0) * (inner + 2 * number("ssm.group_count") * state)
    return _STATE_BYTES * (convolution + inner * state)


def _sliding_window(metadata: Metadata) -> int | None:
    default = _DEFAULT_WINDOWS.get(metadata.architecture, 0)
    return metadata.of_model("attention.sliding_window", default) or None


def _sliding_layers(metadata: Metadata, num_layers: int) -> list[bool]:
    """Which layers look back no further than the window; none where llama.cpp takes no notice."""
    key = "attention.sliding_window_pattern"
    given = metadata.values.get(f"{metadata.architecture}.{key}")
    known = metadata.architecture in _PATTERNS
    if not _sliding_window(metadata) or (given is None and not known):
        return [False] * num_layers
    if isinstance(given, list):
        return [bool(entry) for entry in metadata.of_layers(key, num_layers)]
    every, is_first = _PATTERNS.get(metadata.architecture, (1, False))
    every = metadata.of_model(key, every) or num_layers + 1
    full = 0 if is_first else every - 1
    return [index % every != full for index in range(num_layers)]


def _quantization(file: GGUFFile) -> str:
    """The file's own name for its mix, such as Q4_K_M; else the type most of its bytes have."""
    from gguf.constants import LlamaFileType  # with numpy and more: see gguf_file

    file_type = file.metadata.number("general.file_type", default=-1)
    for known in LlamaFileType:
        if known.value == file_type:
            return known.name.removeprefix("MOSTLY_").removeprefix("ALL_")
    bytes_by_type: Counter[str] = Counter()
    for tensor in file.tensors:
        bytes_by_type[tensor.quantization] += tensor.num_bytes
    return max(bytes_by_type, key=lambda name: bytes_by_type[name], default="")
