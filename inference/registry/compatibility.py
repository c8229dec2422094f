"""Whether a model fits into memory, and in which quantization it would."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from django.conf import settings

from inference.engine.errors import InvalidGGUFError
from inference.engine.gguf_header import GGUFHeader, Layer, read_header
from inference.engine.memory_estimate import MemoryEstimate
from inference.loading import device_memory
from inference.loading.device_memory import MemoryKind
from inference.loading.sizes import ModelSizes, default_context_window, model_sizes
from inference.loading.weights import resolve, resolve_draft, resolve_file
from inference.models import RegisteredModel
from presets.models import Preset
from presets.quantizations import BITS, RECOMMENDED_BITS

_NOTHING = MemoryEstimate(weights_bytes=0, kv_cache_bytes=0, compute_bytes=0, device_bytes=0)
_GUESSED = "The model's file is not here: these are the figures of a usual model of its size."
_NOT_PUBLISHED = (
    "No GPU worker tells what memory it has: these are the figures of the machine that answers."
)


@dataclass(frozen=True, slots=True)
class Compatibility:
    """The verdict; `required_bytes` of the estimate have to lie in `available_bytes`."""

    estimate: MemoryEstimate
    required_bytes: int
    available_bytes: int
    recommended_quantization: str | None = None
    warning: str | None = None

    @property
    def is_compatible(self) -> bool:
        return self.required_bytes <= self.available_bytes


@dataclass(frozen=True, slots=True)
class _Load:
    """A model and how a worker would load it."""

    header: GGUFHeader
    sizes: ModelSizes
    gpu_layers: int
    draft_header: GGUFHeader | None

    def estimate(self) -> MemoryEstimate:
        return self.sizes.estimate(self.header, self.gpu_layers, self.draft_header)

    def required_bytes(self) -> int:
        """On the GPU, or in RAM for a model that has no layers there."""
        needed = self.estimate()
        return needed.device_bytes if self.gpu_layers else needed.total_bytes

    def fits(self, usable_bytes: int) -> bool:
        return self.required_bytes() <= usable_bytes


def check_model(
    model: RegisteredModel, quantization: str | None, context_window: int | None
) -> Compatibility:
    """Check a registered model; one that does not run here needs nothing."""
    if model.provider != RegisteredModel.Provider.LOCAL:
        return Compatibility(_NOTHING, required_bytes=0, available_bytes=0)
    warnings = []
    try:
        header = read_header(resolve_file(model.config["model_path"]))
    except (OSError, ValueError, InvalidGGUFError):
        known = model.extra.get("quantization")
        num_parameters = model.extra.get("parameters", 0)
        header = usual_header(num_parameters, known if known in BITS else "Q4_K_M")
        warnings = [_GUESSED]
    window = context_window or model.context_window
    verdict = _check(header, model.config, quantization, window, warnings)
    if model.loaded and not quantization and not context_window:
        # A loaded model may use the memory that it holds already.
        available = verdict.available_bytes + verdict.required_bytes
        verdict = replace(verdict, available_bytes=available)
    return verdict


def check_preset(
    preset: Preset, quantization: str | None, context_window: int | None
) -> Compatibility:
    """Check a preset, by its file if that is here, else by the preset's own figures."""
    if preset.kind != Preset.Kind.LOCAL or preset.size_b is None:
        return Compatibility(_NOTHING, required_bytes=0, available_bytes=0)
    if weights := preset.packaged_file:
        path = weights.installed_path()
    else:
        path = resolve(preset.files.get(quantization, preset.filename))
    window = preset.provider_config.get("context_window")
    if path and path.is_file():
        header, warnings = read_header(path), []
    else:
        name = quantization or preset.quantization_of(preset.filename) or "Q4_K_M"
        header, warnings = usual_header(int(preset.size_b * 1e9), name), [_GUESSED]
        if known_mb := preset.vram_requirements.get(name):
            # With weights that make up what the preset says it requires.
            sizes = model_sizes(preset.provider_config, window or settings.N_CTX)
            alone = replace(sizes, max_num_seqs=1).estimate(header, gpu_layers=0)
            missing_bytes = known_mb * 1024 * 1024 - alone.total_bytes
            header = _with_weights(header, max(1, header.weights_bytes + missing_bytes))
    window = context_window or window
    choices = preset.files or RECOMMENDED_BITS
    return _check(header, preset.provider_config, quantization, window, warnings, choices)


def models_to_unload(model: RegisteredModel) -> list[str]:
    """The idle models that a worker would unload for a local one, the first to go first.

    As things are, and as far as workers tell what memory they have. Raises OSError, ValueError and
    InvalidGGUFError where the file cannot be read.
    """
    memory = device_memory.published()
    if memory is None:
        return []
    missing_bytes = _as_registered(model, memory.kind).required_bytes() - memory.usable_bytes
    loaded = RegisteredModel.objects.filter(
        status=RegisteredModel.Status.LOADED, provider=RegisteredModel.Provider.LOCAL
    )
    names = []
    for other in loaded.exclude(pk=model.pk).order_by("last_used_at"):
        if missing_bytes > 0 and not other.pinned:
            missing_bytes -= _as_registered(other, memory.kind).required_bytes()
            names.append(other.name)
    return names


def _as_registered(model: RegisteredModel, kind: MemoryKind) -> _Load:
    header = read_header(resolve_file(model.config["model_path"]))
    window = model.context_window or default_context_window(header)
    gpu_layers = model.config.get("gpu_layers", settings.GPU_LAYERS)
    return _Load(
        header,
        model_sizes(model.config, window),
        gpu_layers if kind == MemoryKind.GPU else 0,
        _draft_header(model.config),
    )


def _draft_header(config: dict[str, Any]) -> GGUFHeader | None:
    path = resolve_draft(config)
    return read_header(path) if path else None


def usual_header(num_parameters: int, quantization: str = "Q4_K_M") -> GGUFHeader:
    """The header that a decoder of so many parameters is likely to have.

    12 * layers * hidden^2 parameters with hidden = 128 * layers, and 8 KV heads of 128: for 8e9
    the shape of Llama 3 8B.
    """
    hidden = max(128, round((num_parameters * 128 / 12) ** (1 / 3) / 128) * 128)
    num_layers = hidden // 128
    weights_bytes = round(num_parameters * BITS[quantization] / 8)
    layer = Layer(weights_bytes // num_layers, kv_bytes_per_token=2 * 2 * min(hidden, 1024))
    return GGUFHeader(
        architecture="",
        name="",
        num_parameters=num_parameters,
        quantization=quantization,
        context_length=0,
        embedding_length=hidden,
        query_length=hidden,
        key_length=min(hidden, 1024),
        inner_length=hidden * 7 // 2,
        num_experts_used=1,
        vocab_size=128_256,
        sliding_window=None,
        layers=(layer,) * num_layers,
        chat_template=None,
        size_bytes=weights_bytes,
        weights_bytes=weights_bytes,
        embedding_bytes=0,
        output_bytes=0,
        ties_embeddings=False,
    )


def _check(
    header: GGUFHeader,
    config: dict[str, Any],
    quantization: str | None,
    context_window: int | None,
    warnings: list[str],
    choices: Iterable[str] = RECOMMENDED_BITS,
) -> Compatibility:
    gpu_layers = config.get("gpu_layers", settings.GPU_LAYERS)
    memory = device_memory.published()
    if memory is None or (memory.kind == MemoryKind.GPU and not gpu_layers):
        memory = device_memory.read(gpu_layers)
        warnings = [*warnings, _NOT_PUBLISHED]
    window = context_window or default_context_window(header)
    used_gpu_layers = gpu_layers if memory.kind == MemoryKind.GPU else 0
    try:
        draft_header = _draft_header(config)
    except (OSError, ValueError, InvalidGGUFError) as error:
        draft_header, warnings = None, [*warnings, str(error)]
    as_is = _Load(header, model_sizes(config, window), used_gpu_layers, draft_header)
    wanted = replace(as_is, header=_requantized(header, quantization)) if quantization else as_is
    loaded = wanted
    # Workers halve the number of sequences until the model fits.
    while loaded.sizes.max_num_seqs > 1 and not loaded.fits(memory.usable_bytes):
        loaded = replace(loaded, sizes=loaded.sizes.with_half_the_seqs())
    warnings = [*warnings, *_warnings(wanted, loaded, memory.usable_bytes)]
    return Compatibility(
        estimate=loaded.estimate(),
        required_bytes=loaded.required_bytes(),
        available_bytes=memory.usable_bytes,
        recommended_quantization=_recommended(as_is, memory.usable_bytes, choices),
        warning=" ".join(warnings) or None,
    )


def _warnings(wanted: _Load, loaded: _Load, usable_bytes: int) -> Iterator[str]:
    trained = wanted.header.context_length
    if 0 < trained < wanted.sizes.context_window:
        yield f"It was trained for contexts of {trained} tokens."
    if not loaded.fits(usable_bytes):
        loaded_models = RegisteredModel.objects.filter(status=RegisteredModel.Status.LOADED)
        if names := ", ".join(loaded_models.values_list("name", flat=True)):
            yield f"Of the models in memory ({names}), idle ones make room for it."
    elif loaded.sizes != wanted.sizes:
        yield (
            f"It fits with {loaded.sizes.max_num_seqs} sequences at a time instead of "
            f"{wanted.sizes.max_num_seqs}."
        )


def _recommended(load: _Load, usable_bytes: int, choices: Iterable[str]) -> str | None:
    """The best quantization that fits with all sequences, else the best that fits with one."""
    best_first = sorted(choices, key=BITS.__getitem__, reverse=True)
    for sizes in (load.sizes, replace(load.sizes, max_num_seqs=1)):
        for name in best_first:
            header = _requantized(load.header, name)
            if replace(load, header=header, sizes=sizes).fits(usable_bytes):
                return name
    return None


def _requantized(header: GGUFHeader, quantization: str) -> GGUFHeader:
    """The header of the same model with weights of another size."""
    if quantization == header.quantization or not header.weights_bytes:
        return header
    weights_bytes = round(header.num_parameters * BITS[quantization] / 8)
    return replace(_with_weights(header, weights_bytes), quantization=quantization)


def _with_weights(header: GGUFHeader, weights_bytes: int) -> GGUFHeader:
    factor = weights_bytes / header.weights_bytes
    layers = (
        replace(layer, weights_bytes=round(layer.weights_bytes * factor)) for layer in header.layers
    )
    return replace(
        header,
        layers=tuple(layers),
        weights_bytes=weights_bytes,
        embedding_bytes=round(header.embedding_bytes * factor),
        output_bytes=round(header.output_bytes * factor),
    )
