"""The embedding models that this process holds in memory: the least recently used makes room."""

import logging
import time
from dataclasses import dataclass

from django.conf import settings
from django.db import Error as DatabaseError
from django.db.models.functions import Now

from inference import events
from inference.embeddings.encoders.base import Encoder
from inference.embeddings.encoders.gguf import GGUFEncoder
from inference.embeddings.encoders.sentence_transformers import SentenceTransformersEncoder
from inference.errors import ErrorCode, InferenceError
from inference.loading import embedding_weights
from inference.models import RegisteredModel
from monitoring.hardware import worker_identity

logger = logging.getLogger(__name__)

Status = RegisteredModel.Status

# The row says when a model was last used, but not for each of hundreds of requests a second.
_RECORD_SECONDS = 5.0


@dataclass(slots=True)
class _Resident:
    model: RegisteredModel
    encoder: Encoder
    recorded_at: float = float("-inf")


# By name, the least recently used first.
_residents: dict[str, _Resident] = {}


def load(model: RegisteredModel) -> Encoder:
    """The model, loaded now unless it is resident. Raises InferenceError MODEL_LOAD_FAILED."""
    held = _residents.pop(model.name, None)
    if held is None or not _is_same(held.model, model):
        if held is not None:
            _release(held)
        _make_room()
        held = _Resident(model, _load(model))
    elif model.status == Status.AVAILABLE:  # it was taken for lost, see model_requests.sweep
        model.set_status(Status.LOADED, worker_identity.current())
    _residents[model.name] = held
    _record_use(held)
    return held.encoder


def is_empty() -> bool:
    return not _residents


def unload_forgotten() -> None:
    """Free the models that were deleted, or registered anew."""
    held = list(_residents.values())
    try:
        known = RegisteredModel.objects.in_bulk([each.model.pk for each in held])
    except DatabaseError as exc:
        logger.warning("Whether embedding models were deleted is not known: %s", exc)
        return
    for each in held:
        model = known.get(each.model.pk)
        if model is None or not _is_same(each.model, model):
            _release(_residents.pop(each.model.name))


def _is_same(loaded: RegisteredModel, wanted: RegisteredModel) -> bool:
    """A model that was deleted and registered anew is another one."""
    return loaded.pk == wanted.pk and loaded.config == wanted.config


def _make_room() -> None:
    while len(_residents) >= settings.EMBEDDING_MAX_MODELS:
        _release(_residents.pop(next(iter(_residents))))


def _release(held: _Resident) -> None:
    """What is still being computed with it keeps it in memory until that is done."""
    model = held.model
    _record(model, status=Status.AVAILABLE, loaded_by="", updated_at=Now())
    logger.info("Embedding model %s unloaded", model.name)
    events.unloaded(model, worker_identity.current())


def _load(model: RegisteredModel) -> Encoder:
    model.set_status(Status.LOADING, worker_identity.current())
    started = time.monotonic()
    try:
        encoder = _encoder(model)
    except Exception as error:
        # Each library has exceptions of its own for files that are broken or do not fit.
        model.set_status(Status.ERROR, why=str(error))
        logger.warning("Embedding model %s could not be loaded: %s", model.name, error)
        message = f"The model {model.name} could not be loaded: {error}"
        raise InferenceError(message, ErrorCode.MODEL_LOAD_FAILED) from error
    model.set_status(Status.LOADED, worker_identity.current())
    _record(model, context_window=encoder.max_tokens, extra=_facts(model, encoder))
    load_ms = (time.monotonic() - started) * 1000
    logger.info("Embedding model %s loaded in %.2f s", model.name, load_ms / 1000)
    events.loaded(model, worker_identity.current(), load_ms)
    return encoder


def _encoder(model: RegisteredModel) -> Encoder:
    config = model.config
    path = embedding_weights.find(config)
    encoder: Encoder
    if embedding_weights.is_gguf(path):
        encoder = GGUFEncoder(path, config, model.context_window or settings.N_CTX)
    else:
        encoder = SentenceTransformersEncoder(path, config)
    if config.get("dimensions", encoder.dimensions) != encoder.dimensions:
        raise ValueError(f"It has {encoder.dimensions} dimensions: register it with fewer.")
    return encoder


def _facts(model: RegisteredModel, encoder: Encoder) -> dict[str, object]:
    """What is known for sure once it is loaded."""
    return {
        **model.extra,
        "dimensions": encoder.dimensions,
        "prompts": sorted(encoder.prompts),
    }


def _record_use(held: _Resident) -> None:
    if time.monotonic() - held.recorded_at > _RECORD_SECONDS:
        held.recorded_at = time.monotonic()
        _record(held.model, last_used_at=Now())


def _record(model: RegisteredModel, **fields: object) -> None:
    """Write to the model's row, unless another worker holds it or it was deleted."""
    mine = RegisteredModel.objects.filter(pk=model.pk, loaded_by=worker_identity.current())
    try:
        mine.update(**fields)
    except DatabaseError as exc:
        logger.warning("Embedding model %s: its row was not updated: %s", model.name, exc)
