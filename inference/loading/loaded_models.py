"""The models that this worker process holds in memory: as many as fit, least recently used out.

Not for use by several threads, and never called from within a step of an engine.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import Error as DatabaseError
from django.db.models.functions import Now
from django.utils import timezone

from inference import events
from inference.engine.engine import Engine
from inference.engine.errors import EngineError, ModelLoadError
from inference.engine.gguf_header import GGUFHeader, read_header
from inference.engine.memory_estimate import MemoryEstimate
from inference.engine.runner import LoadParams
from inference.errors import ErrorCode, InferenceError
from inference.loading import device_memory, requests
from inference.loading.models_dir import resolve_file
from inference.loading.sizes import ModelSizes, model_sizes
from inference.models import GenerationTask, RegisteredModel
from monitoring.hardware import worker_identity

if TYPE_CHECKING:
    from inference.engine.llama_runner import LlamaRunner

logger = logging.getLogger(__name__)

Request = RegisteredModel.Request
Status = RegisteredModel.Status


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded model; `loaded_at` is of time.monotonic."""

    model: RegisteredModel
    runner: "LlamaRunner"
    engine: Engine
    loaded_at: float
    estimate: MemoryEstimate


# By name, the least recently used first.
_residents: dict[str, Resident] = {}
_names_in_use: set[str] = set()


class _NoRoomError(ModelLoadError):
    """The model does not fit into the memory that is free now."""


def load(model: RegisteredModel) -> Resident:
    """The model, loaded now unless it is resident. Raises InferenceError MODEL_LOAD_FAILED."""
    found = _residents.get(model.name)
    if found is not None and _is_same(found.model, model):
        if model.status == Status.AVAILABLE:  # it was taken for lost, see model_requests.sweep
            model.set_status(Status.LOADED, worker_identity.current())
        return found
    if model.crashed_too_often:
        raise InferenceError(model.crash_message, ErrorCode.MODEL_LOAD_FAILED)
    if model.name in _names_in_use:
        message = f"The model {model.name} was registered anew while it ran: submit again."
        raise InferenceError(message, ErrorCode.MODEL_LOAD_FAILED)
    unload(model.name)
    model.set_status(Status.LOADING, worker_identity.current())
    started = time.monotonic()
    try:
        made = _load_with_room(model)
    except (EngineError, ValueError, OSError) as error:
        model.set_status(Status.ERROR, why=str(error))
        requests.end(model, Request.LOAD)
        logger.warning("Model %s could not be loaded: %s", model.name, error)
        message = f"The model {model.name} could not be loaded: {error}"
        raise InferenceError(message, ErrorCode.MODEL_LOAD_FAILED) from error
    _residents[model.name] = made
    model.set_status(Status.LOADED, worker_identity.current())
    _record_use(made)
    load_ms = (made.loaded_at - started) * 1000
    events.loaded(model, worker_identity.current(), load_ms)
    requests.end(model, Request.LOAD)
    return made


def resident(name: str) -> Resident:
    """The model of that name, which must be loaded."""
    return _residents[name]


@contextmanager
def in_use(used: Resident) -> Iterator[None]:
    """Keep the model in memory while the block runs, and from then on for as long as it says."""
    name = used.model.name
    _residents[name] = _residents.pop(name)
    _names_in_use.add(name)
    _record(used, unload_at=None, last_used_at=Now())
    try:
        yield
    finally:
        _names_in_use.discard(name)
        _record_use(used)


def unload(name: str) -> None:
    """Free the model of that name, if this worker holds it. Not for one in use."""
    assert name not in _names_in_use, f"{name} is in use"
    freed = _residents.pop(name, None)
    if freed is None:
        return
    freed.runner.close()
    _record(freed, status=Status.AVAILABLE, loaded_by="", unload_at=None, updated_at=Now())
    logger.info("Model %s unloaded", name)
    events.unloaded(freed.model, worker_identity.current())


def unload_all() -> None:
    """Free all models."""
    for name in list(_residents):
        unload(name)


def serve_requests() -> None:
    """Unload what is deleted or idle, then do what the rows ask for; for between two sessions."""
    _unload_forgotten()
    for model in list(RegisteredModel.objects.requests_for(worker_identity.current())):
        _serve(model)


def _serve(model: RegisteredModel) -> None:
    """Whatever happens, the request ends here: it must not stand before all tasks for ever."""
    try:
        if model.requested == Request.UNLOAD:
            unload(model.name)
        else:
            _record_use(load(model))
    except InferenceError:
        pass  # the row says why
    finally:
        requests.end(model, Request(model.requested))


def _unload_forgotten() -> None:
    """Unload models that are registered no more, and those that nobody has used for long."""
    ids = [held.model.pk for held in _residents.values()]
    rows = RegisteredModel.objects.filter(pk__in=ids) if ids else []
    known = {model.pk: model for model in rows}
    for held in list(_residents.values()):
        model = known.get(held.model.pk)
        if model is None or _is_idle(model):
            unload(held.model.name)


def _is_idle(model: RegisteredModel) -> bool:
    """Past its time, and no task is waiting for it."""
    if model.unload_at is None or model.unload_at > timezone.now():
        return False
    return not GenerationTask.objects.pending().filter(model_name=model.name).exists()


def _is_same(loaded: RegisteredModel, wanted: RegisteredModel) -> bool:
    """A model that was deleted and registered anew is another one."""
    return loaded.pk == wanted.pk and loaded.config == wanted.config


def _record_use(used: Resident) -> None:
    keep_alive = used.model.keep_alive
    unload_at = None if keep_alive is None else Now() + keep_alive
    _record(used, unload_at=unload_at, last_used_at=Now())


def _record(held: Resident, **fields: Any) -> None:
    """Write to the model's row, unless another worker has taken it over or it was deleted."""
    mine = RegisteredModel.objects.filter(pk=held.model.pk, loaded_by=worker_identity.current())
    try:
        mine.update(**fields)
    except DatabaseError as exc:
        # Tasks go on; the row is right again when the model is used or unloaded next.
        logger.warning("Model %s: its row was not updated: %s", held.model.name, exc)


def _load_with_room(model: RegisteredModel) -> Resident:
    """Load it; idle models make room, then sequences. Raises ModelLoadError when all is in vain."""
    path = resolve_file(model.config["model_path"])
    header = read_header(path)
    sizes = wanted = model_sizes(model.config, model.context_window or settings.N_CTX)
    while True:
        try:
            made = _load(model, path, header, sizes)
        except _NoRoomError as error:
            if expendable := _expendable():
                # None is driven out for a model that would not fit into the room of all of them.
                smallest = replace(sizes, max_num_seqs=1)
                _checked_estimate(model, header, smallest, leaving=expendable)
                name = expendable[0].model.name
                logger.info("Model %s makes room for %s: %s", name, model.name, error)
                unload(name)
            elif sizes.max_num_seqs == 1:
                raise
            else:
                sizes = sizes.with_half_the_seqs()
            continue
        if sizes != wanted:
            logger.warning(
                "Model %s: memory for %d of %d sequences",
                *(model.name, sizes.max_num_seqs, wanted.max_num_seqs),
            )
        return made


def _load(model: RegisteredModel, path: Path, header: GGUFHeader, sizes: ModelSizes) -> Resident:
    # llama.cpp takes a second to import: only the process that runs models pays for it.
    from inference.engine.llama_runner import LlamaRunner

    started = time.monotonic()
    needed = _checked_estimate(model, header, sizes)
    params = LoadParams(
        path=path,
        **asdict(sizes),
        gpu_layers=_gpu_layers(model),
        num_threads=model.config.get("num_threads", settings.N_THREADS) or None,
    )
    try:
        runner = LlamaRunner(params)
    except ModelLoadError as error:
        # So says llama.cpp when the system does not give what was estimated to be there.
        if "allocate" in str(error):
            raise _NoRoomError(str(error)) from error
        raise
    now = time.monotonic()
    logger.info("Model %s loaded in %.2f s", model.name, now - started)
    return Resident(model, runner, Engine(runner), now, needed)


def _checked_estimate(
    model: RegisteredModel,
    header: GGUFHeader,
    sizes: ModelSizes,
    leaving: Sequence[Resident] = (),
) -> MemoryEstimate:
    """What the model will need. Raises _NoRoomError when that is not there now.

    `leaving`: resident models that are taken as gone.
    """
    gpu_layers = device_memory.used_gpu_layers(_gpu_layers(model))
    needed = sizes.estimate(header, gpu_layers)
    try:
        device_memory.check_fits(
            model.name,
            needed,
            gpu_layers=gpu_layers,
            residents=[held.estimate for held in _residents.values() if held not in leaving],
            leaving=[held.estimate for held in leaving],
        )
    except ModelLoadError as error:
        raise _NoRoomError(str(error)) from error
    return needed


def _gpu_layers(model: RegisteredModel) -> int:
    gpu_layers: int = model.config.get("gpu_layers", settings.GPU_LAYERS)
    return gpu_layers


def _expendable() -> list[Resident]:
    """Models that may go, neither in use nor pinned; the least recently used first."""
    return [
        held
        for name, held in _residents.items()
        if name not in _names_in_use and not held.model.pinned
    ]
