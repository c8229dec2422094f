"""The model that this worker process holds in memory: loaded on first use, one at a time."""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.conf import settings

from inference import gpu_memory, worker_identity
from inference.engine.engine import Engine
from inference.engine.errors import EngineError
from inference.engine.runner import LoadParams
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.registration import resolve_model_path

if TYPE_CHECKING:
    from inference.engine.llama_runner import LlamaRunner

logger = logging.getLogger(__name__)

Status = RegisteredModel.Status


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded model; `loaded_at` is of time.monotonic."""

    model: RegisteredModel
    runner: "LlamaRunner"
    engine: Engine
    loaded_at: float


_resident: Resident | None = None


def load(model: RegisteredModel) -> Resident:
    """The model, loaded now unless it is in memory. Raises InferenceError, in llama.cpp's words."""
    global _resident
    if _resident and _is_same(_resident.model, model):
        return _resident
    unload()
    model.set_status(Status.LOADING, worker_identity.current())
    try:
        _resident = _load(model)
    except (EngineError, ValueError) as error:
        model.set_status(Status.ERROR, why=str(error))
        message = f"The model {model.name} could not be loaded: {error}"
        raise InferenceError(message, ErrorCode.MODEL_LOAD_FAILED) from error
    model.set_status(Status.LOADED, worker_identity.current())
    return _resident


def unload(name: str | None = None) -> None:
    """Free the resident model: any, or only the one of that name."""
    global _resident
    if _resident is None or (name and _resident.model.name != name):
        return
    _resident.runner.close()
    _resident.model.set_status(Status.AVAILABLE)
    logger.info("Model %s unloaded", _resident.model.name)
    _resident = None


def _is_same(loaded: RegisteredModel, wanted: RegisteredModel) -> bool:
    """A model that was deleted and registered anew is another one."""
    return loaded.pk == wanted.pk and loaded.config == wanted.config


def _load(model: RegisteredModel) -> Resident:
    # llama.cpp takes a second to import: only the process that runs models pays for it.
    from inference.engine.llama_runner import LlamaRunner

    started = time.monotonic()
    params = _load_params(model)
    gpu_memory.check_fits(model.size_bytes or 0, params.gpu_layers)
    runner = LlamaRunner(params)
    engine = Engine(runner)
    now = time.monotonic()
    logger.info("Model %s loaded in %.2f s", model.name, now - started)
    return Resident(model, runner, engine, now)


def _load_params(model: RegisteredModel) -> LoadParams:
    """The registration's values, else the settings'. ValueError when the file is gone."""
    config = model.config
    context_window = model.context_window or settings.N_CTX
    gpu_layers = config.get("gpu_layers", settings.GPU_LAYERS)
    num_batch_tokens = config.get("num_batch_tokens") or settings.N_BATCH
    if not num_batch_tokens:
        # A step is how long a cancel may wait: on a CPU a smaller one keeps it below half a second.
        num_batch_tokens = 512 if gpu_layers and gpu_memory.has_gpu() else 128
    return LoadParams(
        path=resolve_model_path(config["model_path"]),
        context_window=context_window,
        num_batch_tokens=min(num_batch_tokens, context_window),
        max_num_seqs=1,
        gpu_layers=gpu_layers,
        num_threads=config.get("num_threads", settings.N_THREADS) or None,
    )
